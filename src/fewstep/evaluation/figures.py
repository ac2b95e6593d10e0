"""Old place of two names."""

from fewstep.evaluation.charts import ENTROPY_BAND_NATS as ENTROPY_BAND_NATS
from fewstep.evaluation.charts import YARDSTICKS as YARDSTICKS
