"""Old place of the train stream."""

from fewstep.evaluation.baselines import train_stream as train_stream
