"""How many trials run at once."""

import pytest

from pipeline.cluster import ClusterConfig
from pipeline.tune.trials import concurrent_trials


def test_trials_leave_room_for_their_workers_and_for_reading():
    assert concurrent_trials(ClusterConfig(workers=2), {"CPU": 8}) == 2  # 3 CPUs each
    assert concurrent_trials(ClusterConfig(), {"CPU": 2}) == 1
    assert concurrent_trials(ClusterConfig(cpus_per_worker=4, data_cpus=4), {"CPU": 64}) == 8


def test_the_scarcest_resource_says_how_many_fit():
    gpus = ClusterConfig(workers=2, use_gpu=True)
    assert concurrent_trials(gpus, {"CPU": 64, "GPU": 8}) == 4
    own = ClusterConfig(workers=2, worker_resources={"train": 1})
    assert concurrent_trials(own, {"CPU": 64, "train": 5}) == 2
    elastic = ClusterConfig(workers=4, min_workers=1, use_gpu=True)
    assert concurrent_trials(elastic, {"CPU": 64, "GPU": 8}) == 8


@pytest.mark.parametrize(
    ("cluster", "resources", "says"),
    [
        (ClusterConfig(workers=2), {"CPU": 2}, "a trial needs 3 CPUs"),
        (ClusterConfig(use_gpu=True), {"CPU": 8}, "a trial needs 1 GPUs, but the cluster has 0"),
        (ClusterConfig(worker_resources={"train": 1}), {"CPU": 8}, "a trial needs 1 train, but the cluster has 0"),
    ],
)
def test_a_trial_that_never_fits_is_refused(cluster, resources, says):
    with pytest.raises(ValueError, match=says):
        concurrent_trials(cluster, resources)
