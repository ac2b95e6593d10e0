"""The time grid that belongs to where training spends its time."""

from fewstep.schedules import LogitNormalGrid, LogitNormalTime, TimeGrid, TimeSampler, UniformGrid


def grid_of(time_sampler: TimeSampler) -> TimeGrid:
    """The grid of equal shares of ``time_sampler``'s times: quantiles of a logit-normal, equal steps otherwise.

    This is the sampler's own default for a model trained with that time sampler, so that an objective which trains
    certain steps trains those that are later taken. Each step of N is cut in exactly m by the grid of m N steps.
    """
    if isinstance(time_sampler, LogitNormalTime):
        return LogitNormalGrid(time_sampler.mean, time_sampler.std)
    return UniformGrid()
