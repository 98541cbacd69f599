"""What the command of accuracy takes, and what it refuses before anything is loaded."""

from __future__ import annotations

import importlib

import pytest


@pytest.fixture
def options(benchmark_modules):
    parse = importlib.import_module("study.options").parse
    return lambda *given: parse(list(given), "", {})


CIFAR = ("--dataset", "cifar10")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "magic"], "'magic' is not a known method; --list-methods prints all"),
        (["--method", "clas-aware"], "did you mean 'class-aware'?"),
        (["--method", "ce+mata"], "'mata' is not a known extra; did you mean 'meta'?"),
        (["--method", "class-aware/one"], "'one' is not a known economy"),
        (["--method", "ce/one-sided"], "'one-sided', which belongs to learned weights"),
        (["--method", "ce+warm-up"], "'warm-up', which belongs to learned weights"),
        (["--method", "ce+meta+meta"], "names an extra twice"),
        (["--method", "class-aware+early+averaged"], "+early and +averaged; take one of them"),
        (["--method", "fine-tune+meta"], "fine-tune always trains on the clean samples"),
        (["--method", "ce++meta"], "is not of the form BASE[+EXTRA ...][/ECONOMY]"),
        (["--method", "ce", "--method", "ce"], "ce was given twice"),
        (["--noise", "1.5"], "1.5 is not a share"),
        (["--noise", "0.4", "--noise-kind", "nonsense"], "invalid choice"),
        (["--noise-kind", "flip"], "--noise-kind: needs --noise"),
        (["--imbalance-factor", "0.5"], "0.5 is not a finite factor"),
        (["--imbalance-factor", "nan"], "nan is not a finite factor"),
        (["--steps", "0"], "0 is below 1"),
        (["--epochs", "2", "--steps", "5"], "--steps already says how long to train"),
        (["--seeds", "many"], "'many' is neither a number"),
        (["--seeds", "0"], "0 seeds were asked for"),
        (["--seeds", "1", "1"], "names a seed twice"),
        (["--device", "abacus"], "'abacus' is not a device"),
        (["--precision", "fp16", "--device", "cpu"], "fp16 needs a GPU"),
        (["--method", "ce", "--meta-lr", "0.1"], "none of the methods asked for learns weights"),
        (["--method", "ce", "--focal-gamma", "1"], "focal is not among the methods"),
        (["--data", "x"], "digits come with scikit-learn"),
        (["--network", "resnet18"], "digits have a network of their own"),
        ([*CIFAR, "--network", "digits-net"], "digits-net is for digits, not for cifar10"),
        ([*CIFAR, "--clean", "x"], "--clean: belongs to --dataset images"),
        ([*CIFAR, "--label-set", "worst"], "needs --human-labels FILE"),
        ([*CIFAR, "--human-labels", "x", "--noise", "0.1"], "people have made labels wrong"),
        (["--human-labels", "x"], "are labels of cifar10 or cifar100"),
        (["--dataset", "images", "--data", "x"], "images needs --data, and --clean"),
        (["--minutes", "0"], "0 is not positive"),
    ],
)
def test_refuses_arguments(options, capsys, arguments, message):
    with pytest.raises(SystemExit) as exit_:
        options(*arguments)
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "seeds"),
    [(["3"], [0, 1, 2]), (["4", "7"], [4, 7]), (["4,7"], [4, 7]), (["7,"], [7])],
)
def test_seeds_are_a_number_or_a_list(options, given, seeds):
    assert options("--seeds", *given).seeds == seeds


def test_lists_the_methods_and_does_nothing_else(options, capsys):
    assert options("--list-methods") is None
    printed = capsys.readouterr().out
    methods = importlib.import_module("study.methods")
    for name in (*methods.FIXED, *methods.LEARNED, *methods.EXTRAS, *methods.ECONOMIES):
        assert f"  {name} " in printed


def test_names_of_methods_have_one_form(benchmark_modules):
    method = importlib.import_module("study.methods").Method
    names = ("class-aware/one-sided+meta+warm-up", "class-aware+warm-up+meta/one-sided")
    assert {method.of_name(name).name for name in names} == {"class-aware+meta+warm-up/one-sided"}


def test_a_large_network_follows_the_published_protocol(options):
    for asked, epochs, shares, rate, clean in (
        (("--imbalance-factor", "100"), 100, (0.8, 0.9), 1e-6, 10),
        (("--noise", "0.4"), 60, (40 / 60, 50 / 60), 1e-3, 100),
    ):
        found = options(*CIFAR, "--network", "resnet32", *asked)
        assert (found.protocol.epochs, found.protocol.milestones) == (epochs, shares)
        rates = found.protocol.learning_rate, found.protocol.meta_learning_rate
        assert rates == pytest.approx((0.1, rate))
        assert found.setting.meta_per_class == clean
    steps_of = importlib.import_module("study.sweep").steps_of
    published = options(*CIFAR, "--network", "resnet32", "--imbalance-factor", "100").protocol
    # Classes of 4 990 · 100^(-c/9) samples are 12 379 in all: 124 batches of up to 100.
    assert steps_of(published, 12_379) == 12_400


def test_arguments_change_the_protocol_of_every_method(options):
    found = options("--noise", "0.4", "--lr", "0.3", "--epochs", "4", "--batch-size", "7")
    rates = {found.protocol.of(method).learning_rate for method in found.methods}
    assert rates == {0.3}
    assert (found.protocol.steps, found.protocol.epochs, found.protocol.batch_size) == (None, 4, 7)
    tuned = options("--noise", "0.4", "--method", "ce", "--method", "class-aware")
    assert [tuned.protocol.of(method).learning_rate for method in tuned.methods] == [0.0025, 0.01]


def test_a_folder_is_named_after_setting_and_budget(options):
    asked = ("--imbalance-factor", "10", "--noise", "0.4", "--noise-kind", "flip", "--epochs", "3")
    found = options(*CIFAR, *asked, "--per-class", "50", "--tuning", "--out", "o")
    name = "cifar10-if10-flip40-50each-quick-clean10-tuning-3epochs"
    assert found.folder.as_posix() == f"o/{name}"
    human = options(*CIFAR, "--human-labels", "f.npz")
    assert human.setting.human_labels == "worst"
    assert "worst" in human.folder.name
