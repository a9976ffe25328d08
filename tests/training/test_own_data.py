"""``fastmlp.fit(X, y)``: what it learns, predicts and keeps, and each mistake in one sentence."""

import json

import numpy as np
import pytest
import torch
from support.tiny import assert_same_run

import fastmlp
from fastmlp.training.own_data import prepare, split_rows
from fastmlp.training.predictor import Predictor
from fastmlp.utils.errors import UserError

pd = pytest.importorskip("pandas")

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(5, 3, (300, 4))
KIND = np.where(X[:, 0] + X[:, 1] > 10, "big", "small")
NUMBER = 100 + 20 * (X[:, 0] - X[:, 2])
BOTH = np.c_[X[:, 0] > 5, X[:, 1] > 5].astype(int)
QUICK = {"epochs": 25, "hidden": (16,), "batch_size": 16, "lr": 0.01, "threads": 1, "device": "cpu"}


@pytest.fixture(autouse=True)
def _no_drawing(monkeypatch):
    monkeypatch.setattr("fastmlp.plotting.curves.learning_curves", lambda *args: None)


def test_a_classification_is_learned():
    run = fastmlp.fit(X[:200], KIND[:200], **QUICK)
    assert run.config.engine == "native"
    assert (run.predict(X[200:]) == KIND[200:]).mean() > 0.9
    found = run.evaluate(X[200:], KIND[200:])
    assert found.accuracy == (run.predict(X[200:]) == KIND[200:]).mean()
    probabilities = run.predict_proba(X[200:])
    rows = torch.from_numpy(run.predictor.encoding.inputs.apply(fastmlp_table(X[200:])))
    expected = run.model(rows).softmax(1).detach().numpy()
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)
    assert run.finished
    assert run.test is None


def fastmlp_table(x):
    from fastmlp.data.tables import as_table

    return as_table(x)


def test_a_regression_is_learned_in_its_own_units():
    run = fastmlp.fit(X[:200], NUMBER[:200], **QUICK, test=(X[200:], NUMBER[200:]))
    errors = run.predict(X[200:]) - NUMBER[200:]
    assert np.square(errors).mean() < 0.05 * NUMBER.var()
    losses = [record.val_loss for record in run.history]
    assert run.summary["best"]["val_loss"] == min(losses)
    assert run.summary["best"]["val_acc"] is None
    scaled = errors / run.predictor.encoding.target.columns[0].deviation
    assert run.test.loss == pytest.approx(np.square(scaled).mean(), rel=1e-4)


def test_whole_numbers_are_classes_and_come_back():
    digits = (X[:, 0] > 5).astype(np.int32) + 7
    predicted = fastmlp.fit(torch.tensor(X), digits, **QUICK).predict(X)
    assert predicted.dtype == np.int64
    assert set(predicted) == {7, 8}
    assert (predicted == digits).mean() > 0.9


def test_several_numbers_are_learned_each_in_its_own_units():
    y = np.c_[NUMBER, 1e-3 * (X[:, 1] + X[:, 3])]
    run = fastmlp.fit(X[:200], y[:200], **QUICK)
    assert run.config.loss == "squared_error"
    predicted = run.predict(X[200:])
    assert predicted.shape == (100, 2)
    errors = np.square(predicted - y[200:]).mean(0) / y.var(0)
    assert (errors < 0.05).all()
    deviations = [column.deviation for column in run.predictor.encoding.target.columns]
    scaled = np.square((predicted - y[200:]) / deviations).mean()
    assert run.evaluate(X[200:], y[200:]).loss == pytest.approx(scaled, rel=1e-4)


def test_several_labels_are_learned_and_keep_their_names(tmp_path):
    frame = pd.DataFrame(BOTH, columns=["warm", "wet"])
    run = fastmlp.fit(X[:200], frame[:200], **QUICK, out=tmp_path / "run")
    assert run.config.loss == "binary_cross_entropy"
    read = Predictor.load(tmp_path / "run")
    assert read.encoding.target.names == ("warm", "wet")
    predicted = read.predict(X[200:])
    assert predicted.dtype == np.int64
    assert (predicted == BOTH[200:]).mean() > 0.9
    np.testing.assert_array_equal(read.predict_proba(X[200:]) > 0.5, predicted == 1)
    accuracy = (predicted == BOTH[200:]).all(1).mean()
    assert run.evaluate(X[200:], frame[["wet", "warm"]][200:]).accuracy == pytest.approx(accuracy)
    with pytest.raises(UserError, match="y has the targets 'hot', 'wet', and the network was"):
        run.evaluate(X, frame.rename(columns={"warm": "hot"}))
    with pytest.raises(UserError, match=r"y has 1 targets for each row, and .* was trained on 2"):
        run.evaluate(X, frame["wet"])


def pictures(count=300, seed=1):
    random = np.random.default_rng(seed)
    labels = random.integers(0, 3, count)
    pixels = random.integers(0, 150, (count, 16), dtype=np.uint8)
    pixels[:, 0] = 7  # a constant pixel is no mistake
    pixels[np.arange(count), 1 + labels] += 100
    return pixels, np.array(["a", "b", "c"])[labels]


@pytest.mark.parametrize(
    ("options", "engine"),
    [
        ({}, "native"),
        ({"normalize": "unit", "lr": 0.02}, "native"),
        ({"optimizer": "sgd", "augment": "shift:1"}, "blocked"),
        ({"sample_weight": np.ones(300)}, "native"),
        ({"engine": "reference"}, "reference"),
    ],
)
def test_pixels_stay_bytes(options, engine, monkeypatch):
    trained = []
    fit = fastmlp.training.api.fit
    monkeypatch.setattr(
        "fastmlp.training.api.fit", lambda *args, **kw: trained.append(args[1]) or fit(*args, **kw)
    )
    x, y = pictures()
    run = fastmlp.fit(x, y, **{**QUICK, **options})
    assert run.config.engine == engine
    assert trained[0].train.images.dtype == trained[0].val.images.dtype == torch.uint8
    new, truth = pictures(seed=2)
    if "augment" not in options:
        assert (run.predict(new) == truth).mean() > 0.8
    normalization = run.predictor.encoding.inputs.normalization(run.config.normalize)
    expected = run.model(normalization.apply(torch.from_numpy(new))).softmax(1).detach()
    np.testing.assert_allclose(run.predict_proba(torch.from_numpy(new)), expected, atol=1e-5)
    found = run.evaluate(new, truth)
    assert found.accuracy == (run.predict(new) == truth).mean()
    assert found.loss == pytest.approx(
        -np.log(expected.numpy()[np.arange(300), np.searchsorted(["a", "b", "c"], truth)]).mean(),
        rel=1e-4,
    )
    with pytest.raises(UserError, match="X must be pixels"):
        run.predict(new.astype(float))


def test_columns_that_are_dropped(tmp_path):
    frame = pd.DataFrame({"id": np.arange(len(X)), "a": X[:, 0], "b": X[:, 1]})
    run = fastmlp.fit(frame, KIND, **QUICK, drop=["id"], out=tmp_path)
    without = fastmlp.fit(frame[["a", "b"]], KIND, **QUICK)
    assert run.history[-1].train_loss == without.history[-1].train_loss
    assert (run.predict(frame[["b", "a"]]) == Predictor.load(tmp_path).predict(frame)).all()
    for drop, words in (
        (["c"], "drop names the column 'c', and X has only 'id', 'a', 'b'"),
        (["id", "a", "b"], "drop leaves no column of X; keep some"),
        ("id", r"drop must be a list of columns, got 'id'; write \['id'\]"),
    ):
        with pytest.raises(UserError, match=words):
            prepare(frame, KIND, drop=drop)
    with pytest.raises(UserError, match="drop names columns, and those of X have no names"):
        prepare(X, KIND, drop=["1"])


def test_bytes_with_categories_are_a_table():
    own = prepare((X[:, :2] > 5).astype(np.uint8), KIND, categories=["1"])
    assert own.encoding.inputs.input_names == ("0", "1=0", "1=1")
    assert own.splits.train.images.dtype == torch.float32


def test_rows_of_validation_and_test_have_weights():
    wrong = np.where(KIND == "big", "small", "big")
    held = np.concatenate([X[200:], X[200:]]), np.concatenate([KIND[200:], wrong[200:]])
    weights = np.repeat([2.0, 0.0], 100)
    options = {**QUICK, "epochs": 3}
    run = fastmlp.fit(
        X[:200], KIND[:200], validation=(*held, weights), test=(*held, weights), **options
    )
    right = fastmlp.fit(X[:200], KIND[:200], validation=(X[200:], KIND[200:]), **options)
    losses = [[record.val_loss for record in each.history] for each in (run, right)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert run.test.loss == pytest.approx(run.evaluate(X[200:], KIND[200:]).loss, rel=1e-5)
    x, y = pictures()
    own = prepare(x, y, validation=(x, y, np.arange(300)))
    assert own.splits.val.weights.tolist() == list(range(300))
    assert not own.splits.train.plain  # an engine that has no weights must not evaluate these
    with pytest.raises(UserError, match="sample_weight must be 100 numbers"):
        prepare(X[:200], KIND[:200], validation=(X[200:], KIND[200:], [1, 2]))
    with pytest.raises(
        UserError, match="validation must be rows and targets, or rows, targets and"
    ):
        prepare(X, KIND, validation=(X,))


@pytest.mark.parametrize(
    ("x", "y"), [(2 * X + 1, KIND), (X, np.where(KIND == "big", "b", "a"))], ids=["units", "names"]
)
def test_a_run_does_not_go_on_in_other_units(x, y, tmp_path):
    """The network's numbers are the same."""
    fastmlp.fit(X, KIND, **{**QUICK, "epochs": 2}, out=tmp_path)
    with pytest.raises(UserError, match="other data: its columns, their units or the names of"):
        fastmlp.fit(x, y, **{**QUICK, "epochs": 4}, out=tmp_path, resume=True)


def test_a_run_on_arrays_goes_on_where_it_stopped(tmp_path):
    def fit(name, **options):
        return fastmlp.fit(
            X, KIND, **{**QUICK, "epochs": 4, **options}, out=tmp_path / name, resume=True
        )

    whole = fit("whole")  # there is nothing to go on with
    calls = iter(range(9))
    stopped = fit("stopped", should_stop=lambda: next(calls, None) is None)
    assert stopped.interrupted
    resumed = fit("stopped")
    assert resumed.finished
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")
    np.testing.assert_array_equal(resumed.predict_proba(X), whole.predict_proba(X))
    assert [r.val_loss for r in fit("stopped").history] == [r.val_loss for r in whole.history]
    short = fit("longer", epochs=2, lr_schedule="constant")
    longer = fit("longer", epochs=4, lr_schedule="constant")
    assert (len(short.history), len(longer.history)) == (2, 4)
    with pytest.raises(
        UserError, match=r"The run was begun with lr 0.01 and cannot go on with 0.1"
    ):
        fit("stopped", lr=0.1)
    with pytest.raises(UserError, match="The run was trained on other data"):
        fastmlp.fit(
            X + 1e-3 * X**2, KIND, **{**QUICK, "epochs": 4}, out=tmp_path / "whole", resume=True
        )
    with pytest.raises(UserError, match="resume goes on with the run in a folder; pass it as out"):
        fastmlp.fit(X, KIND, **QUICK, resume=True)
    with pytest.raises(UserError, match=r"call fit\(X, y, out=..., resume=True\)"):
        fastmlp.resume(tmp_path / "whole")


def test_a_run_folder_predicts_raw_rows(tmp_path):
    frame = pd.DataFrame(X, columns=["a", "b", "c", "d"]).assign(town=np.where(KIND == "big", 1, 2))
    run = fastmlp.fit(frame, KIND, **QUICK, categories=["town"], out=tmp_path / "run")
    read = Predictor.load(tmp_path / "run")
    shuffled = frame[["town", "d", "c", "b", "a"]]
    np.testing.assert_array_equal(read.predict_proba(shuffled), run.predict_proba(frame))
    assert read.encoding.inputs.input_names == ("a", "b", "c", "d", "town=1", "town=2")
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["test_accuracy"] is None


def test_the_encoding_is_fitted_on_the_training_part():
    own = prepare(X, KIND)
    assert len(own.splits.train.images) == 240
    mean = own.splits.train.images.mean(0)
    torch.testing.assert_close(mean, torch.zeros(4), atol=1e-5, rtol=0)
    assert own.splits.val.images.mean(0).abs().max() > 1e-3


def test_a_given_validation_part_is_taken_whole():
    own = prepare(X[:200], NUMBER[:200], validation=(X[200:], NUMBER[200:]))
    assert (len(own.splits.train.labels), len(own.splits.val.labels)) == (200, 100)


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_a_stratified_split_keeps_the_shares_of_the_classes(share):
    labels = np.repeat([0, 1, 2], [100, 40, 4])
    RANDOM.shuffle(labels)
    train, held = split_rows(144, share, 0, labels)
    assert sorted([*train, *held]) == list(range(144))
    assert len(held) == round(144 * share)
    for label, count in ((0, 100), (1, 40), (2, 4)):
        assert abs((labels[held] == label).sum() - count * share) <= 1
        assert (labels[train] == label).any()


def test_a_split_is_a_function_of_its_seed():
    first, again, other = (split_rows(50, 0.2, seed)[1].tolist() for seed in (3, 3, 4))
    assert first == again != other
    assert len(first) == 10


def test_weights_of_samples_and_classes():
    rare = np.where(np.arange(300) % 10 == 0, "rare", "common")
    weights = np.arange(300.0)
    own = prepare(X, rare, sample_weight=weights, class_weight="balanced", split_seed=1)
    labels = own.splits.train.labels
    train, held = split_rows(300, 0.2, 1, (rare == "rare").astype(int))
    counts = torch.bincount(labels)
    expected = len(labels) / (2 * counts[labels]) * torch.from_numpy(weights[train])
    torch.testing.assert_close(own.splits.train.weights, expected.float())
    assert own.splits.val.weights.tolist() == weights[held].tolist()
    own = prepare(X, rare, class_weight={"rare": 4})
    assert set(own.splits.train.weights[own.splits.train.labels == 1].tolist()) == {4.0}


def test_rows_without_weight_do_not_count():
    wrong = np.where(KIND == "big", "small", "big")
    both_x, both_y = np.concatenate([X, X]), np.concatenate([KIND, wrong])
    weight = np.repeat([1.0, 0.0], 300)
    run = fastmlp.fit(both_x, both_y, sample_weight=weight, **QUICK)
    assert (run.predict(X) == KIND).mean() > 0.9


@pytest.mark.parametrize(
    ("x", "y", "options", "message"),
    [
        (X, None, {}, "y is missing"),
        (X, KIND[:9], {}, "y has 9 targets and X has 300 rows"),
        (X, X[None], {}, r"y must be one target for each row, .* or several"),
        (X, np.c_[KIND, X[:, 0].round(3)], {}, "'y.1' has .* classes, and of several targets each"),
        (X, BOTH, {"class_weight": "balanced"}, "class_weight is for .* this is several targets"),
        (X, NUMBER, {"stratify": True}, "stratify is for the classes of one target"),
        (X[:2], KIND[:2], {"task": "regression"}, "'y' has the text"),
        (X[:3], [1, 2, 3], {}, "X has 3 rows of 3 classes, too few .* or task regression"),
        (X[:2], [1.5, 2], {}, "X has 2 rows, too few .*; pass more rows, or another validation[.]"),
        (X, KIND, {"class_weight": {KIND[0]: -1.0}}, "class_weight of .* at least 0, got -1.0"),
        (X, KIND, {"class_weight": {KIND[0]: "x"}}, "class_weight of .* at least 0, got 'x'"),
        (X, KIND, {"class_weight": dict.fromkeys(set(KIND), 0)}, "class_weight is 0 for every"),
        (X, np.ones(300), {}, "'y' has the single class '1'"),
        (X, KIND, {"validation": 1.5}, "validation must be a share between 0 and 1"),
        (X, KIND, {"hiden": 3}, "fit has no option 'hiden'"),
        (X, KIND, {"loss": "huber"}, "loss huber cannot be used for targets that are labels"),
        (X, KIND, {"class_weight": {"tiny": 2}}, "class_weight names the class 'tiny'"),
        (X, NUMBER, {"class_weight": "balanced"}, "class_weight is for classes"),
        (X, KIND, {"sample_weight": [1, 2]}, "sample_weight must be 300 numbers"),
        (X, KIND, {"sample_weight": -np.ones(300)}, "sample_weight is -1 in row 1"),
        (X, KIND, {"engine": "blocked"}, "blocked cannot run here"),
        (np.where(np.arange(300) == 222, np.nan, 5)[:, None] + X, KIND, {}, "no value in row 223 "),
        (np.ones((300, 2)), KIND, {}, "Column '0' of X is 1 in every training row"),
    ],
)
def test_a_mistake_is_one_sentence(x, y, options, message):
    with pytest.raises(UserError, match=message):
        fastmlp.fit(x, y, **options)


def test_a_known_data_set_is_trained_on_as_before():
    from support.tiny import tiny_data

    config = fastmlp.TrainConfig(hidden=(4,), epochs=1, device="cpu", threads=1)
    for run in (fastmlp.fit(config, tiny_data()), fastmlp.fit(config=config, data=tiny_data())):
        assert run.test.count == 50
        with pytest.raises(UserError, match=r"was not trained on rows given to fastmlp.fit"):
            run.predict(X)
