"""The benchmark's parts on the least sizes; never how long anything takes."""

import concurrent.futures
import contextlib
import fcntl
import functools
import json
import mmap
import multiprocessing
import os
import pathlib
import re
import signal
import sys
import time

import compiled_loops
import jax
import jax.numpy as jnp
import pytest

from experiments.benchmark import (
    child,
    compiling,
    contenders,
    figure,
    importing,
    largest_product,
    memory,
    ours as ours_module,
    run,
    sections,
    summary,
)
from experiments.benchmark.flax_rnn import FlaxRNN
from experiments.benchmark.ours import Ours
from experiments.benchmark.report import Comparison, Report, table
from experiments.benchmark.sizes import NOTES, Sizes
from experiments.benchmark.timing import Timing, calls_of, calls_of_made, in_turn
from experiments.devices import replicated
from experiments.errors import RunError
from flax_lstm.native.cores import usable_cores

ROOT = pathlib.Path(__file__).parents[2]
TINY = Sizes(batch=4, steps=3, inputs=2, hidden=4, layers=2)


@pytest.fixture(autouse=True)
def subnormals():
    """Torch has them again after a test in which it was tuned."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_flush_denormal(False)


def torch_lstm(**options):
    pytest.importorskip("torch", reason="torch is one of the contenders")
    from experiments.benchmark.torch_lstm import TorchLSTM

    return TorchLSTM(threads=1, **options)


def by_torch():
    pytest.importorskip("torch", reason="torch is one of the contenders")
    return largest_product.by_torch(threads=1)


CONTENDERS = {
    "ours": lambda: Ours("auto", all_devices=True),
    "scan_with_remat": lambda: Ours("scan", all_devices=False, remat=True),
    "flax": FlaxRNN,
    "torch": torch_lstm,
}
CHUNKS = {
    "ours_in_chunks": lambda: Ours("auto", all_devices=True, steps_per_call=3),
    "flax_in_chunks": lambda: FlaxRNN(steps_per_call=3),
    "tuned_torch_in_chunks": lambda: torch_lstm(steps_per_call=3, tuned=True),
}


@pytest.mark.parametrize("make", CONTENDERS.values(), ids=CONTENDERS)
def test_a_contender_trains_and_infers(make):
    contender = make()
    # Outside of jit Flax compiles a layer's loop in every call.
    few = TINY._replace(layers=1)
    for kind, sizes in (
        ("training", TINY),
        ("inference", TINY),
        ("eager_inference", few),
        ("eager_gradient", few),
    ):
        work = getattr(contender, kind)(sizes)
        work()
        work()


@pytest.mark.parametrize("make", CHUNKS.values(), ids=CHUNKS)
def test_a_contender_trains_in_chunks(make):
    """All else it does as without them."""
    work = make().training(TINY)
    work()
    work()


@pytest.mark.parametrize("tuned", [False, True])
def test_tuned_torch_has_no_subnormals(tuned):
    torch = pytest.importorskip("torch", reason="torch is one of the contenders")
    if not torch.set_flush_denormal(False):
        pytest.skip("torch can't flush subnormals on this processor")
    torch_lstm(tuned=tuned).training(TINY)
    subnormal = torch.tensor(1e-38) * torch.tensor(0.1)
    assert (subnormal == 0) == tuned


# And the gates whose second bias, torch's, is one too many here.
@pytest.mark.parametrize(("cell", "gates"), [("lstm", 4), ("gru", 2), ("rnn", 1)])
def test_contenders_train_the_same_model_for_as_many_steps(cell, gates):
    pytest.importorskip("torch", reason="torch is one of the contenders")
    from experiments.benchmark.torch_lstm import Classifier

    sizes = TINY._replace(cell=cell)
    ours = Ours("scan", all_devices=False, steps_per_call=3)
    flax = FlaxRNN(steps_per_call=3)
    mesh = ours._mesh(sizes)
    state = replicated(ours._state(sizes), mesh)
    after = ours._step(mesh)(state, ours._batch(sizes, mesh))
    flax_after = flax._step()(flax._state(sizes), *flax._batch(sizes))
    assert int(after.step) == int(flax_after.step) == 3
    second_biases = sizes.layers * gates * sizes.hidden
    of_torch = sum(p.numel() for p in Classifier(sizes).parameters())
    for state in (after, flax_after):
        parameters = sum(array.size for array in jax.tree.leaves(state.params))
        assert parameters == of_torch - second_biases


@pytest.mark.skipif(
    jax.default_backend() != "cpu" or jax.device_count() < 4,
    reason="needs four CPU devices",
)
def test_an_rnn_has_the_devices_of_its_experiment(monkeypatch):
    """One for each core, whether the other cells' loops are compiled or not."""
    ours, rnn = Ours("auto", all_devices=True), NOTES._replace(cell="rnn")
    monkeypatch.setattr(ours_module, "has_native_loops", lambda: True)
    assert ours._mesh(NOTES).size == 1
    assert ours._mesh(NOTES._replace(cell="gru")).size == 1
    assert ours._mesh(rnn).size == 4  # Each has 25 rows.
    claimed = []
    monkeypatch.setattr(
        contenders, "claim_cores", lambda count=None, cell="lstm": claimed.append(cell)
    )
    monkeypatch.setattr(ours, "training", lambda sizes: sizes)
    alone = contenders.Alone(ours, claim=contenders.claim_cores)
    assert alone.work("training", rnn) == rnn
    assert claimed == ["rnn"]


@pytest.mark.parametrize("make", CONTENDERS.values(), ids=CONTENDERS)
def test_a_contender_infers_with_other_cells(make):
    for sizes in sections.OTHER_CELLS:
        make().inference(TINY._replace(cell=sizes.cell))()


@pytest.mark.parametrize(("devices", "sums"), [(1, False), (2, True)])
def test_a_step_on_one_device_sums_over_none(devices, sums):
    """Which XLA:CPU would do by a copy of all gradients."""
    if jax.device_count() < devices:
        pytest.skip(f"needs {devices} devices")
    ours = Ours("fused", all_devices=True, num_devices=devices)
    mesh = ours._mesh(TINY)
    state = replicated(ours._state(TINY), mesh)
    text = ours._step(mesh).lower(state, ours._batch(TINY, mesh)).as_text()
    assert ("stablehlo.all_reduce" in text) == sums


def test_contenders_take_turns_and_every_round_starts_with_another():
    called = []

    def work(name, count):
        called.extend([name] * count)
        return 0.11

    works = {name: functools.partial(work, name) for name in ("a", "b")}
    timings, failed = in_turn(works, rounds=2)
    assert failed == {}
    # Twice beforehand; then a call that is not timed and one that is.
    assert called == ["a"] * 2 + ["b"] * 2 + [*"aabb"] + [*"bbaa"]
    assert {len(timing.samples) for timing in timings.values()} == {2}


def test_a_sample_is_of_many_short_calls_after_some_that_are_not_timed():
    asked = []

    def work(count):
        asked.append(count)
        return 0.01

    in_turn({"short": work}, rounds=2)
    assert asked == [1, 1, *[5, 10] * 2]


@pytest.mark.parametrize("first", [[1.0], [0.02, 0.02]])
def test_slow_first_calls_leave_the_samples_as_long_as_the_others(first):
    """Libraries are loaded by the first, on a GPU; meanwhile others compile."""
    asked, slow = [], list(first)

    def work(count):
        asked.append(count)
        return slow.pop(0) if slow else 0.001

    timings, _ = in_turn({"short": work}, rounds=2)
    assert asked[-3:] == [100, 50, 100]
    assert set(timings["short"].samples) == {0.001}


def test_who_fails_at_first_is_left_out_and_the_others_are_timed(capsys):
    def failing():
        raise OSError("no such library\nand more")

    made = []

    def making():
        made.append(1)
        return lambda: None

    works = {"broken": calls_of(failing), "sound": calls_of_made(making)}
    timings, failed = in_turn(works, rounds=1)
    assert failed == {"broken": "OSError: no such library"}
    assert list(timings) == ["sound"]
    assert made == [1]
    # Said at once, should the run be cut short.
    broken, sound = capsys.readouterr().err.splitlines()
    assert broken == "  broken: OSError: no such library"
    assert re.fullmatch(r"  sound: .* ms a call, ready after .* s", sound)
    assert in_turn({"broken": works["broken"]}, seconds=60) == ({}, failed)


def test_who_fails_later_is_left_out_and_the_others_are_timed():
    """As a kernel may when XLA replays it from a CUDA graph."""
    left = [0.01] * 3

    works = {"broken": lambda count: left.pop(), "sound": lambda count: 0.01}
    timings, failed = in_turn(works, rounds=3)
    assert failed == {"broken": "IndexError: pop from empty list"}
    assert len(timings["sound"].samples) == 3
    assert list(timings) == ["sound"]


def test_a_call_of_several_steps_counts_as_several():
    works = dict.fromkeys(("one", "ten"), calls_of(lambda: time.sleep(0.01)))
    timings, _ = in_turn(works, rounds=1, units={"ten": 10})
    # Sleeping is at least as long as asked for: no clock can make this fail.
    assert timings["one"].median >= 0.01
    assert timings["ten"].median < timings["one"].median


def comparison():
    return Comparison(
        "training step",
        str(TINY),
        "ms",
        {"ours": 1.0, "torch": 4.0},
        (("ours", "torch"), ("ours", "torch.compile")),
        {
            "ours": Timing((0.001, 0.001, 0.002)),
            "torch": Timing((0.002, 0.004, 0.004)),
        },
        {"torch.compile": "RuntimeError: no compiler"},
    )


def test_a_table_has_no_column_for_who_was_not_measured():
    head, *_ = table([comparison()]).splitlines()
    assert head == "| training step (ms) | ours | torch | ours / torch |"


def test_a_ratio_is_that_of_the_rounds():
    slower_each_round = Timing((1.0, 2.0, 8.0)), Timing((2.0, 8.0, 16.0))
    # The medians' would be 0.25.
    assert slower_each_round[0].over(slower_each_round[1]) == 0.5
    assert slower_each_round[0].quartiles_over(slower_each_round[1]) == (0.375, 0.5)


def test_the_arithmetic_of_a_step():
    # An addition and a multiplication a weight, row and step.
    forward = 2 * 4 * 3 * (4 * 4) * (2 + 4 + 4 + 4)
    assert TINY.flop("inference") == forward
    # The gradient of the inputs of the first layer is not asked for.
    assert TINY.flop("training") == 3 * forward - 2 * 4 * 3 * (4 * 4) * 2
    assert NOTES.flop("training") == pytest.approx(3.464e9, rel=1e-3)
    assert 4 * TINY._replace(cell="gru").flop("inference") == 3 * forward
    assert 4 * TINY._replace(cell="rnn").flop("inference") == forward


def test_a_table_shows_ratios_and_what_could_not_be_measured():
    text = table([comparison()])
    # Of the rounds, not 1 / 4.
    assert "| B 4, T 3, H 4, L 2 | 1 | 4 | 0.50 |" in text
    assert "Not measured, torch.compile: RuntimeError: no compiler" in text


def test_a_report_is_written_with_its_ratios(tmp_path):
    report = Report({"device": "one"})
    report.add(comparison())
    report.write(str(tmp_path / "result.json"))
    content = json.loads((tmp_path / "result.json").read_text())
    assert content["environment"] == {"device": "one"}
    (row,) = content["comparisons"]
    assert row["ratios"] == {"ours / torch": 0.5, "ours / torch.compile": None}
    assert row["timings"]["ours"] == {"samples": [0.001, 0.001, 0.002]}
    assert Report.read(str(tmp_path / "result.json")) == report
    (tmp_path / "result.json").write_text(json.dumps(content | {"format_version": 1}))
    with pytest.raises(RunError, match=r"result.json: expected .* format 2, got 1"):
        Report.read(str(tmp_path / "result.json"))


@pytest.mark.parametrize(
    ("results", "count"),
    [
        ("benchmark-2-cores", 4),
        ("zen4-2-cores", 4),
        ("zen4-2-cores-cells", 1),
        ("avx2-2-cores", 3),
    ],
)
def test_the_text_has_the_tables_of_the_results(results, count):
    report = Report.read(str(ROOT / "experiments" / "results" / f"{results}.json"))
    text = (ROOT / "experiments" / "BENCHMARK.md").read_text()
    tables = summary.tables(report)
    assert len(tables) == count
    for part in tables:
        assert part in text


def test_the_readme_has_the_results():
    results = ROOT / "experiments" / "results" / "benchmark-2-cores.json"
    short = summary.short_table(Report.read(str(results)))
    assert short in (ROOT / "README.md").read_text()


def test_a_summary_leaves_out_what_was_not_measured():
    report = Report({})
    assert summary.tables(report) == []
    timings = {
        "ours": Timing((0.001, 0.001, 0.002)),
        "torch": Timing((0.002, 0.004, 0.004)),
    }
    values = {"ours": 1.0, "torch": 4.0}
    # Not ten steps a call, which is another row.
    section, work = sections.TRAINING_ALONE, str(NOTES)
    alone = Report({}, [Comparison(section, work, "ms", values, timings=timings)])
    assert summary.short_table(alone).splitlines() == [
        "| a process each, ms | ours | torch | ratio |",
        "| --- | --- | --- | --- |",
        "| training step, one a call | 1 | 4 | 0.50 |",
    ]
    for size in (largest_product.CPU_SIZE, largest_product.GPU_SIZE):
        limit = {"XLA": 4 * largest_product.flop(size) / NOTES.flop("training")}
        product = largest_product.work_of(size)
        limited = Report({}, [*alone.comparisons])
        limited.add(Comparison(sections.LARGEST_PRODUCT, product, "ms", limit))
        (whole,) = summary.tables(limited)
        assert whole.splitlines()[::2] == [
            "| a process each, ms | ours | torch | ratio | limit |",
            "| training step, one a call | 1 | 4 | 0.50 (0.38 to 0.50) | 4 |",
        ]
    section, work = sections.grid_section("training"), str(sections.GRID[0])
    report.add(Comparison(section, work, "ms", values, timings=timings))
    eager = Comparison(sections.EAGER_GRADIENT, work, "ms", values, timings=timings)
    assert summary.tables(Report({}, [eager])) == []  # Of other sizes.
    work = str(NOTES._replace(batch=1))
    eager = Comparison(sections.EAGER_GRADIENT, work, "ms", values, timings=timings)
    (outside,) = summary.tables(Report({}, [eager]))
    assert outside.splitlines() == [
        "| outside of jit, a process each, ms | ours | torch | ratio |",
        "| --- | --- | --- | --- |",
        "| gradient, B 1 | 1 | 4 | 0.50 |",
    ]
    (grid,) = summary.tables(report)
    assert grid.splitlines() == [
        "| grid, a process each, ratios | training: / torch |",
        "| --- | --- |",
        "| B 1, T 28, H 32 | 0.50 |",
    ]
    section, work = sections.cells_section("inference"), str(sections.OTHER_CELLS[1])
    other = Comparison(section, work, "ms", values, timings=timings)
    (cells,) = summary.tables(Report({}, [other]))
    assert cells.splitlines() == [
        "| other cells, a process each, ms | ours | torch | ratio |",
        "| --- | --- | --- | --- |",
        "| RNN, inference, B 100 | 1 | 4 | 0.50 |",
    ]


def test_what_was_found_is_kept_when_a_part_ends_the_run(tmp_path, monkeypatch):
    def part():
        yield comparison()
        raise KeyboardInterrupt

    parts = {"first": lambda: iter([comparison()]), "second": part}
    monkeypatch.setattr(run, "PARTS", parts)
    output = tmp_path / "folder" / "result"
    with pytest.raises(KeyboardInterrupt):
        run.run(["first", "second"], str(output))
    content = json.loads(output.with_suffix(".json").read_text())
    assert [row["section"] for row in content["comparisons"]] == ["training step"] * 2
    assert [path.name for path in output.parent.iterdir()] == ["result.json"]


def test_a_part_named_twice_is_run_once(tmp_path, monkeypatch):
    parts = {"first": lambda: iter([comparison()])}
    monkeypatch.setattr(run, "PARTS", parts)
    run.run(["first", "first"], str(tmp_path / "result"))
    content = json.loads((tmp_path / "result.json").read_text())
    assert len(content["comparisons"]) == 1


def test_an_unknown_part_is_an_error_before_anything_runs(tmp_path):
    output = tmp_path / "folder" / "result"
    with pytest.raises(RunError, match=r"^--parts: expected some of .*grid.*'grids'"):
        run.run(["epoch", "grids"], str(output))
    with pytest.raises(RunError, match=r"^--parts: expected some of .*got none"):
        run.run([], str(output))
    assert not output.parent.exists()


def test_the_growth_is_drawn(tmp_path):
    path = tmp_path / "growth.png"
    figure.save_growth({"B": [comparison()] * 2}, {"B": [1, 10]}, str(path))
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.skipif(not memory.can_measure(), reason="only Linux tells the peak")
def test_memory_is_measured_in_a_process_of_its_own():
    sizes = Sizes(batch=64, steps=64, inputs=8, hidden=64, layers=1)
    peak = child.in_process(memory.peak_bytes, FlaxRNN(), sizes)
    # At least one number of float32 a unit and step.
    assert peak > 64 * 64 * 64 * 4


class CompilesAtLength:
    """Has much memory for a moment, which is the system's again before it works."""

    MUCH = 2**26

    def training(self, sizes):
        size = self.MUCH if sizes == NOTES else mmap.PAGESIZE
        with mmap.mmap(-1, size) as memory:
            for start in range(0, size, mmap.PAGESIZE):
                memory[start] = 1
        return lambda: None


@pytest.mark.skipif(not memory.can_measure(), reason="only Linux tells the peak")
def test_what_compiling_takes_is_not_counted_as_memory():
    compiles = CompilesAtLength()
    assert memory.peak_bytes(compiles, NOTES) < compiles.MUCH / 2


def test_a_process_that_dies_is_an_error():
    with pytest.raises(
        RuntimeError, match=r"^_exit: its process ended with exit code 3"
    ):
        child.in_process(__import__("os")._exit, 3)


@pytest.mark.skipif(not child.can_pin(), reason="only Linux can choose cores")
def test_one_core_is_all_that_the_other_process_has():
    before = usable_cores()
    with child.on_one_core():
        assert child.in_process(usable_cores) == 1
    assert usable_cores() == before


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="the loops are a CPU's")
def test_a_run_says_which_loops_it_had(native, monkeypatch):
    assert run.environment()["implementation"] == "fused"
    monkeypatch.setenv("FLAX_LSTM_CACHE_DIR", compiled_loops.directory())
    assert run.environment()["implementation"] == "native"


def dying_work():
    return lambda: os._exit(3)


# One of each way to make the work and to set malloc.
ALONE_BY_DEFAULT = (contenders.OURS_CHUNKED, contenders.FLAX_KEPT, contenders.TORCH)


def processes():
    for name, entry in contenders.alone().items():
        first = name in ALONE_BY_DEFAULT
        for kind, marks in (
            ("training", () if first else pytest.mark.slow),
            ("inference", pytest.mark.slow if first else pytest.mark.long),
        ):
            yield pytest.param(entry, kind, id=f"{name}-{kind}", marks=marks)


@pytest.mark.parametrize(("entry", "kind"), list(processes()))
def test_a_contender_works_in_a_process_of_its_own(entry, kind):
    with child.working(entry.work, kind, TINY) as calls:
        assert calls(1) > 0
        assert calls(2) > 0


def test_work_whose_process_dies_is_an_error():
    with (
        pytest.raises(
            RuntimeError, match=r"^dying_work: its process ended with exit code 3"
        ),
        child.working(dying_work) as calls,
    ):
        calls(1)


def ignores_ctrl_c():
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    return lambda: None


def test_ctrl_c_is_the_parents_who_takes_its_children_along():
    with child.working(ignores_ctrl_c) as calls:
        assert calls(1) >= 0
        (process,) = multiprocessing.active_children()
        assert process.daemon


def test_compiling_waits_until_it_is_this_processs_turn(tmp_path, monkeypatch):
    """As it does for a GPU."""
    monkeypatch.setattr(compiling, "_turns", None)
    file = tmp_path / "turns"
    file.touch()
    compiling.take_turns(str(file))
    lowered = jax.jit(jnp.negative).lower(1.0)
    with (
        concurrent.futures.ThreadPoolExecutor() as pool,
        contextlib.ExitStack() as turn,
    ):
        fcntl.flock(turn.enter_context(file.open("rb")), fcntl.LOCK_EX)
        waiting = pool.submit(compiling.compiled, lowered)
        with pytest.raises(concurrent.futures.TimeoutError):
            waiting.result(timeout=0.5)
        turn.close()
        assert waiting.result()(1.0) == -1


@pytest.mark.parametrize("make", [largest_product.by_xla, by_torch])
def test_the_largest_product(make, monkeypatch):
    monkeypatch.setattr(largest_product, "size_here", lambda: 8)
    make()()


def test_settings_and_commit_are_recorded(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    environment = run.environment()
    assert "OMP_NUM_THREADS=7" in environment["settings"].split()
    assert environment["commit"]


def test_importing_is_timed_in_a_process_of_its_own():
    assert importing.import_seconds(1) > 0
