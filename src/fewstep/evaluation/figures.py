"""Old place of the entropy band, and the colours of yardsticks."""

from fewstep.evaluation.charts import ENTROPY_BAND_NATS as ENTROPY_BAND_NATS

YARDSTICKS = {
    "held-out text": ("#000000", "-"),
    "language model": ("#009E73", "--"),
    "words shuffled": ("#777777", "-."),
    "unigram draws": ("#999999", ":"),
    "pure noise": ("#CC79A7", (0, (1, 3))),
}
