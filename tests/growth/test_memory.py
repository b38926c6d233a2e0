"""What must not stay in memory while a child is trained."""

import weakref

from inheritune.growth import scoring, stages
from inheritune.job import grow
from inheritune.training.sinks import Silent


def test_the_reference_is_freed_once_it_is_scored(recipe, monkeypatch):
    networks, alive = [], []
    honest_load, honest_train = scoring.load_model, stages.train

    def load(folder):
        network = honest_load(folder)
        networks.append(weakref.ref(network))
        return network

    def train(*given, **settings):
        alive.append([network() is not None for network in networks])
        return honest_train(*given, **settings)

    monkeypatch.setattr(scoring, "load_model", load)
    monkeypatch.setattr(stages, "train", train)
    grow(recipe(growth__max_depth=2, baselines=[]), progress=Silent())
    assert len(networks) >= 2
    assert alive
    assert not any(any(each) for each in alive)
