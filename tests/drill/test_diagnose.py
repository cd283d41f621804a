"""Which cause is named for which records; no process runs here."""

from __future__ import annotations

from dataclasses import replace

import pytest

from spotckpt.drill.diagnose import Evidence, Told, judge
from spotckpt.training.witness import Life, Record

STEPS, RESUMED_AT = 8, 4
WEIGHT = "model/weight"


def leaf(kind, value, *, root="ema", type_name="Linear"):
    return [kind, value, value if kind == "number" else "a tensor of [4]", root, type_name, "train() in train.py"]


def record(at, step, **other):
    """As every training of this file is at that moment, unless it is told otherwise."""
    fields = {
        "generators": {"torch": [f"t{step}", True, 0], "python": ["p", False, None]},
        "batch": {"batch": f"b{step}"} if at == "step" else {},
        "tensors": {WEIGHT: [f"w{step}", 1.0 + step, [4]]},
        "values": {"scheduler/last_epoch": str(step)},
        "metrics": {"train/loss": f"l{step}"} if at == "step" else {},
        "locals": {"lr": leaf("number", "0.1", root="lr", type_name="float")} if at != "open" else {},
    }
    return Record(at, step, **{**fields, **other})


def life(*, first=0, files=None, change=lambda one: one):
    resumed = f"a0001-n000000-s{first:08d}-00000000" if first else None
    records = [record("open", first), record("start", first)]
    records += [record("step", step) for step in range(first + 1, STEPS + 1)]
    records.append(record("end", STEPS))
    return Told(Life(tuple(change(one) for one in records), files or {}, resumed))


def changing(group, name, value, *, since=0, at=("start", "step", "end")):
    """Another value from that step on."""

    def change(one):
        if one.at not in at or one.step < since:
            return one
        return replace(one, **{group: {**getattr(one, group), name: value(one.step)}})

    return change


def both(*changes):
    def change(one):
        for each in changes:
            one = each(one)
        return one

    return change


FIRST = life()
RESUMED = life(first=RESUMED_AT)


def found(plain=FIRST, lives=(FIRST, RESUMED), **other):
    verdict = judge(Evidence(plain, lives, **other))
    assert not verdict.needs_control
    assert verdict.finding is not None
    return verdict.finding


def test_the_same_is_the_same():
    verdict = judge(Evidence(FIRST, (FIRST, RESUMED)))
    assert verdict.finding is None
    assert not verdict.needs_control
    assert verdict.notes == []


# Before anything was resumed


def test_weights_that_differ_at_the_start_with_a_generator_that_was_drawn_from():
    unseeded = both(
        changing("generators", "torch", lambda step: [f"u{step}", True, 7]),
        changing("tensors", WEIGHT, lambda step: [f"v{step}", 2.0, [4]]),
    )
    finding = found(lives=[life(change=unseeded)])
    assert finding.cause == "unseeded generator"
    assert finding.name == "torch's global generator"
    assert "torch.manual_seed(0)" in finding.remedy


def test_an_unseeded_generator_that_nobody_draws_from_is_not_to_blame():
    """Python's is not seeded either, and differs from the start; numpy's is drawn from."""
    plain = life(change=changing("generators", "numpy", lambda step: [f"n{step}", True, None]))
    other = life(
        change=both(
            changing("generators", "python", lambda step: ["q", False, None]),
            changing("generators", "numpy", lambda step: [f"m{step}", True, None]),
            changing("batch", "batch", lambda step: f"c{step}", since=1),
        )
    )
    assert found(plain, [other]).name == "numpy's global generator (np.random)"


def test_a_generator_that_differs_and_is_never_drawn_from_makes_no_difference():
    other = changing("generators", "python", lambda step: ["q", False, None])
    verdict = judge(Evidence(FIRST, [life(change=other), life(first=RESUMED_AT, change=other)]))
    assert verdict.finding is None
    assert verdict.notes == []


def test_seeding_after_the_model_was_built():
    early = both(
        changing("generators", "torch", lambda step: ["elsewhere", True, 7], at=("open",)),
        changing("tensors", WEIGHT, lambda step: [f"v{step}", 2.0, [4]]),
    )
    finding = found(lives=[life(change=early)])
    assert finding.cause == "unseeded generator"
    assert "before it was seeded" in finding.why


def test_a_local_generator_is_named_with_its_function():
    def local(seed):
        return changing(
            "locals", "rng", lambda step: leaf("generator", f"{seed}{step}", root="rng", type_name="Generator")
        )

    plain = life(change=local("a"))
    other = life(change=both(local("b"), changing("tensors", WEIGHT, lambda step: [f"v{step}", 2.0, [4]], since=1)))
    assert found(plain, [other]).name == "the generator rng of train() in train.py"


def test_a_generator_in_a_data_loader_is_named():
    def loader(seed):
        return changing("generators", "loader 1.0.0 dataset.rng", lambda step: [f"{seed}{step}", None, None])

    other = both(loader("b"), changing("batch", "batch", lambda step: f"c{step}", since=1))
    finding = found(life(change=loader("a")), [life(change=other)])
    assert finding.name == "the generator dataset.rng of a data loader"


def test_low_bits_without_another_reason_are_the_kernels():
    rounding = changing("tensors", WEIGHT, lambda step: [f"v{step}", (1.0 + step) * (1 + 1e-7), [4]], since=3)
    finding = found(lives=[life(change=rounding), RESUMED])
    assert finding.cause == "nondeterministic kernels"
    assert finding.step == 3
    assert finding.name == WEIGHT


def test_a_large_difference_without_another_reason_is_not_the_kernels():
    jump = changing("tensors", WEIGHT, lambda step: [f"v{step}", 3.0 + step, [4]], since=3)
    assert found(lives=[life(change=jump)]).cause == "something else"


def test_a_number_that_only_one_of_them_has_not_is_not_the_kernels():
    nan = changing("tensors", WEIGHT, lambda step: [f"v{step}", float("nan"), [4]], since=3)
    assert found(lives=[life(change=nan)]).cause == "something else"


def test_kernels_whose_rounding_shows_after_a_resume_only_are_found_by_the_control():
    rounding = changing("tensors", WEIGHT, lambda step: [f"v{step}", (1.0 + step) * (1 + 1e-7), [4]], since=6)
    lives = (FIRST, life(first=RESUMED_AT, change=rounding))
    assert judge(Evidence(FIRST, lives)).needs_control
    assert found(lives=lives, control=life(change=rounding)).cause == "nondeterministic kernels"


@pytest.mark.parametrize("files", [{}, {"/data/train.npy": [10, 1]}])
def test_another_batch_with_the_same_generators_is_the_data(files):
    changed = {path: [size, time + 1] for path, (size, time) in files.items()}
    other = life(files=changed, change=changing("batch", "batch", lambda step: f"c{step}", since=2))
    finding = found(life(files=files), [other])
    assert finding.cause == "data changed"
    assert finding.name == ("/data/train.npy" if files else "batch")


# After a resume


def test_data_that_changed_before_the_third_start():
    other = life(first=RESUMED_AT, change=changing("batch", "batch", lambda step: f"c{step}", since=5))
    assert judge(Evidence(FIRST, (FIRST, other))).needs_control
    assert found(lives=(FIRST, other), control=FIRST).cause == "data changed"


def test_a_loader_that_said_that_it_would_not_be_exact():
    other = life(first=RESUMED_AT, change=changing("batch", "batch", lambda step: f"c{step}", since=5))
    said = "a loader went on: random augmentation inside its workers is not the same as without the interruption"
    assert found(lives=(FIRST, replace(other, lines=[said]))).cause == "inexact loader"


def carried(kind, value, **other):
    return changing("locals", "ema", lambda step: leaf(kind, value(step), **other), at=("start", "step"))


def test_a_copy_of_the_model_that_begins_anew():
    plain = life(change=carried("tensor", lambda step: f"e{step}"))
    resumed = life(first=RESUMED_AT, change=carried("tensor", lambda step: f"anew{step}"))
    finding = found(plain, (plain, resumed))
    assert (finding.cause, finding.name, finding.step) == ("untracked copy", "ema", RESUMED_AT)
    assert "run.track(ema=ema)" in finding.remedy


def test_of_what_an_object_counts_that_is_told_first_which_has_a_name_for_its_users():
    def counting(begin):
        values = {"scheduler._last_lr": "list", "scheduler.last_epoch": "number", "scheduler._step_count": "number"}
        return both(
            *(
                changing(
                    "locals",
                    path,
                    lambda step, kind=kind: leaf(kind, str(step - begin), root="scheduler", type_name="StepLR"),
                    at=("start", "step"),
                )
                for path, kind in values.items()
            )
        )

    plain = life(change=counting(0))
    finding = found(plain, (plain, life(first=RESUMED_AT, change=counting(RESUMED_AT))))
    assert (finding.cause, finding.name) == ("untracked state", "scheduler")
    assert finding.first.startswith("scheduler.last_epoch after the resume at step 4")
    assert finding.remedy.startswith("run.track(scheduler=scheduler)")


def test_a_sum_that_begins_anew_and_the_metric_that_follows():
    plain = life(change=carried("number", str, root="total", type_name="float"))
    resumed = life(
        first=RESUMED_AT,
        change=both(
            carried("number", lambda step: str(step - RESUMED_AT), root="total", type_name="float"),
            changing("metrics", "train/loss", lambda step: "other", since=STEPS),
        ),
    )
    finding = found(plain, (plain, resumed))
    assert finding.cause == "local accumulator"
    assert "4 without the interruption, 0 with it" in finding.first
    assert "the metric train/loss follows at step 8" in finding.why


def test_a_number_that_is_right_again_before_anything_depends_on_it_is_a_note():
    plain = life(change=carried("number", lambda step: str(step // 6), root="best", type_name="float"))
    healing = carried("number", lambda step: "inf" if step < 7 else str(step // 6), root="best", type_name="float")
    verdict = judge(Evidence(plain, (plain, life(first=RESUMED_AT, change=healing))))
    assert verdict.finding is None
    assert "best did not come back" in verdict.notes[0]


def test_a_value_that_every_start_has_its_own_of_is_no_state():
    """`started = time.time()`, `first_step = run.step`: other in each start, and never changed."""
    plain = life(change=carried("number", lambda step: "100.0", root="started", type_name="float"))
    resumed = life(first=RESUMED_AT, change=carried("number", lambda step: "200.0", root="started", type_name="float"))
    assert judge(Evidence(plain, (plain, resumed))).finding is None


def test_a_clock_that_moves_in_each_start_differently_is_no_state():
    def clock(start):
        return life(
            first=start[0],
            change=carried("number", lambda step: f"{start[1]}.{step}", root="elapsed", type_name="float"),
        )

    assert judge(Evidence(clock((0, 1)), (clock((0, 2)), clock((RESUMED_AT, 3))))).finding is None


def test_a_counter_may_be_left_out_by_name():
    plain = life(change=carried("number", str, root="ema", type_name="int"))
    resumed = life(
        first=RESUMED_AT,
        change=carried("number", lambda step: str(step - RESUMED_AT), root="ema", type_name="int"),
    )
    assert found(plain, (plain, resumed)).remedy.endswith("--ignore ema")
    assert judge(Evidence(plain, (plain, resumed), ignored=frozenset({"ema"}))).finding is None


def test_a_metric_of_time_is_left_out_and_said():
    def timed(start):
        return changing("metrics", "train/seconds", lambda step: f"{start}.{step}", at=("step",))

    lives = (life(change=timed(2)), life(first=RESUMED_AT, change=timed(3)))
    verdict = judge(Evidence(life(change=timed(1)), lives))
    assert verdict.finding is None
    assert verdict.notes == ["not compared, as they differ without an interruption too: train/seconds"]


def test_a_difference_that_nothing_explains_says_so_after_a_control():
    resumed = life(first=RESUMED_AT, change=changing("tensors", WEIGHT, lambda step: [f"v{step}", 9.0, [4]], since=6))
    assert judge(Evidence(FIRST, (FIRST, resumed))).needs_control
    finding = found(lives=(FIRST, resumed), control=FIRST)
    assert finding.cause == "something else"
    assert finding.first == "the tensor model/weight at step 6 (start 2)"


def test_another_batch_from_a_generator_that_stands_elsewhere_is_not_the_data():
    other = both(
        changing("batch", "batch", lambda step: f"c{step}", since=5),
        changing("generators", "torch", lambda step: [f"u{step}", True, 0], since=5),
    )
    finding = found(lives=(FIRST, life(first=RESUMED_AT, change=other)), control=FIRST)
    assert (finding.cause, finding.name) == ("generator elsewhere", "torch's global generator")


@pytest.mark.parametrize("group", ["tensors", "values", "generators"])
def test_every_recorded_thing_counts_after_a_resume(group):
    name = {"tensors": WEIGHT, "values": "scheduler/last_epoch", "generators": "torch"}[group]
    value = "other" if group == "values" else ["other", True, [4]]
    resumed = life(first=RESUMED_AT, change=changing(group, name, lambda step: value, since=STEPS, at=("end",)))
    assert found(lives=(FIRST, resumed), control=FIRST).first.endswith(
        "at the end (step 8) (start 2)" if group != "values" else "8, then other"
    )


# What is printed


def printing(told, *lines):
    return replace(told, lines=lines)


def test_a_line_that_the_interrupted_training_never_printed():
    plain = printing(FIRST, "epoch 1", "accuracy 0.93")
    lives = (printing(FIRST, "epoch 1"), printing(RESUMED, "accuracy 0.12"))
    assert judge(Evidence(plain, lives)).needs_control
    assert "never printed: accuracy 0.93" in found(plain, lives, control=plain).first


def test_times_that_are_printed_do_not_count():
    plain, control = printing(FIRST, "epoch 1", "took 3.1 s"), printing(FIRST, "epoch 1", "took 2.9 s")
    lives = (printing(FIRST, "epoch 1"), printing(RESUMED, "took 4 s"))
    assert judge(Evidence(plain, lives, control)).finding is None


def test_a_sum_that_is_only_printed_is_found_though_it_is_reset_in_time():
    plain = printing(
        life(change=carried("number", lambda step: str(step % 6), root="ema", type_name="float")), "mean 0.50"
    )
    anew = carried(
        "number", lambda step: str(step - RESUMED_AT if step < 6 else step % 6), root="ema", type_name="float"
    )
    lives = (plain, printing(life(first=RESUMED_AT, change=anew), "mean 0.20"))
    finding = found(plain, lives, control=plain)
    assert finding.cause == "local accumulator"
    assert finding.first == "the interrupted training printed: mean 0.20"
