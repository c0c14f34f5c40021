"""The live view: what it reads, what it draws, and how it leaves the terminal."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from synthetic_runs import over_training_run, under_training_run, write_experiment, write_run
from weight_decay.errors import UserError
from weight_decay.report.commands import COMMANDS
from weight_decay.report.live.screen import draw
from weight_decay.report.live.status import status_table
from weight_decay.report.live.tail import LONGEST_FIRST_READ, Tail, sparkline
from weight_decay.report.live.watch import Watch

COMMAND = "import sys; from weight_decay.report.commands import COMMANDS; sys.exit(COMMANDS['watch'](sys.argv[1:]))"
BLOCKS = "▁▂▃▄▅▆▇█"


def line(step: int, **metrics: Any) -> str:
    return json.dumps({"step": step, **{name.replace("__", "/"): value for name, value in metrics.items()}}) + "\n"


def loss(tail: Tail) -> list[tuple[int, float]]:
    tail.refresh()
    return tail.points["batch/loss"]


def running(results: Path, regime: str, seed: int, **metrics: Any) -> dict[str, Any]:
    """A running cell whose rows hold what real runs record."""
    over = regime == "over_training"
    make = over_training_run(0.3, 0.015, seed=seed) if over else under_training_run(0.05, seed=seed)
    make.status, make.extra = "running", {"total_steps": 2 * make.rows[-1]["step"]}
    for row in make.rows:
        row["batch/loss"] = 2.0 / (1 + row["step"])
        row["effective_lr/sgd"] = row["lr"] / row["weights/norm"] ** 2
        row["time/seconds"] = row["step"] * 0.04
        row |= metrics
    return write_run(results, make)


def suite(results: Path) -> list[dict[str, Any]]:
    """Two experiments with a running cell each, and one cell of every other kind."""
    over = [
        running(results, "over_training", 0),
        write_run(results, over_training_run(0.3, 0.0)),
        write_run(results, over_training_run(0.3, 0.0, seed=1, status="diverged")),
        write_run(results, over_training_run(0.3, 0.0, seed=2, status="failed", extra={"error": "out of memory"})),
        {"run_id": "0" * 12, "folder": "absent-000000000000", "coordinates": {"decay.strength": 0.5, "seed": 9}},
    ]
    write_experiment(results, "vision", over, "over_training")
    text = [running(results, "under_training", 0)]
    write_experiment(results, "language", text, "under_training")
    return [*over, *text]


def shown(results: Path, width: int = 160, height: int | None = None, experiment: str | None = None) -> list[str]:
    return [line.plain for line in draw(Watch(results, experiment).look(height), width, height)]


# -- reading -----------------------------------------------------------------------------------------------------


def test_only_whole_new_lines_are_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tail = Tail(path, ["batch/loss"])
    assert loss(tail) == [] and tail.step is None
    path.write_text(line(1, batch__loss=2.0, time__seconds=1.0))
    assert loss(tail) == [(1, 2.0)]
    with path.open("a") as stream:
        stream.write(line(3, batch__loss=1.0, time__seconds=2.0)[:-5])
    assert loss(tail) == [(1, 2.0)]
    with path.open("a") as stream:
        stream.write(line(3, batch__loss=1.0, time__seconds=2.0)[-5:] + line(3, test__error=0.5))
    assert loss(tail) == [(1, 2.0), (3, 1.0)]
    assert tail.step == 3 and tail.speed == 2.0
    with path.open("a") as stream:
        stream.write("no json\n" + line(4, batch__loss=None))
    assert [step for step, _ in loss(tail)] == [1, 3, 4]
    path.unlink()
    assert loss(tail) == [] and tail.speed is None


@pytest.mark.parametrize("grown", [0, 4, 40])
def test_what_a_resume_has_cut_off_is_forgotten(tmp_path: Path, grown: int) -> None:
    """Also when the file has meanwhile grown beyond the place where it was read to."""
    path = tmp_path / "metrics.jsonl"
    lines = [line(step, batch__loss=float(step), time__seconds=step * 0.5) for step in range(10)]
    path.write_text("".join(lines))
    tail = Tail(path, ["batch/loss"])
    assert len(loss(tail)) == 10
    again = [line(step, batch__loss=-1.0, time__seconds=step * 0.7) for step in range(5, 5 + grown)]
    path.write_text("".join(lines[:5] + again))
    assert loss(tail) == [(step, float(step) if step < 5 else -1.0) for step in range(5 + grown)]


def test_steps_recorded_again_replace_the_old_ones(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(line(step, batch__loss=1.0, time__seconds=float(step)) for step in (1, 2, 3, 2)))
    tail = Tail(path, ["batch/loss"])
    assert [step for step, _ in loss(tail)] == [1, 2]
    assert tail.speed == 1.0


def test_of_a_long_file_only_the_end_is_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    one = line(0, batch__loss=1.0, padding="x" * 1000)
    count = 2 * LONGEST_FIRST_READ // len(one)
    path.write_text("".join(line(step, batch__loss=1.0, padding="x" * 1000) for step in range(count)))
    points = loss(Tail(path, ["batch/loss"]))
    assert points[-1] == (count - 1, 1.0)
    assert LONGEST_FIRST_READ // len(one) - 10 < len(points) <= LONGEST_FIRST_READ // len(one)


def test_sparklines() -> None:
    assert sparkline([], 8) == ""
    assert sparkline([(s, 10.0**s) for s in range(8)], 8) == BLOCKS
    assert sparkline([(s, float(s)) for s in range(8)], 8) == BLOCKS
    assert sparkline([(s, 1e-7) for s in range(4)], 8) == "▄▄▄▄"
    assert sparkline([(0, 1.0), (1, float("nan")), (2, 3.0)], 8) == "▁×█"
    assert sparkline([(s, float(-s)) for s in range(1000)], 8) == BLOCKS[::-1]


def test_sparklines_near_the_largest_number() -> None:
    assert sparkline([(0, -1e308), (1, 1e308)], 8) == "▁█"
    assert sparkline([(s, 1.7e308) for s in range(16)], 8) == "▄" * 8


DAMAGED = [
    '{"step": 1e400, "batch/loss": 1}',
    f'{{"step": {"9" * 400}, "batch/loss": 1}}',
    f'{{"step": 1, "batch/loss": {"9" * 400}}}',
    "[" * 100_000,
]


@pytest.mark.parametrize("damaged", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_line_is_passed_over(tmp_path: Path, damaged: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(line(1, batch__loss=2.0) + damaged + "\n" + line(2, batch__loss=1.0))
    assert loss(Tail(path, ["batch/loss"])) == [(1, 2.0), (2, 1.0)]
    suite(tmp_path)
    for file in tmp_path.glob("runs/*/metrics.jsonl"):
        with file.open("a") as stream:
            stream.write(damaged + "\n")
    assert "960/1920" in "\n".join(shown(tmp_path))
    assert "1 running" in status_table(tmp_path, "vision")


@pytest.mark.parametrize("seconds", ["1e400", "-1e308, 1e308", "9" * 400, "NaN", "0, 1e-320", "0, 1e308"])
def test_times_that_give_no_speed_are_passed_over(tmp_path: Path, seconds: str) -> None:
    suite(tmp_path)
    for file in tmp_path.glob("runs/*/metrics.jsonl"):
        lines = [f'{{"step": {step}, "time/seconds": {at}}}\n' for step, at in enumerate(seconds.split(", "))]
        file.write_text("".join(lines))
    assert "last finished" in shown(tmp_path)
    assert "running" in status_table(tmp_path, "vision")


def test_damaged_summaries_and_experiments_are_said(tmp_path: Path) -> None:
    suite(tmp_path)
    (done,) = (path for path in tmp_path.glob("runs/*/summary.json") if '"completed"' in path.read_text())
    summary = json.loads(done.read_text())
    odd = {"total_steps": 10**400, "seconds": 10**400, "final": {"test/error": 10**400}}
    for status in ("completed", "running"):
        done.write_text(json.dumps({**summary, **odd, "status": status}))
        assert status in "\n".join(shown(tmp_path)) and status in status_table(tmp_path, "vision")
    done.write_text("[" * 100_000)
    assert "1 damaged" in "\n".join(shown(tmp_path)) and "damaged" in status_table(tmp_path, "vision")
    (tmp_path / "experiments" / "vision-micro.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"cannot be read \(RecursionError"):
        shown(tmp_path)


# -- looking -----------------------------------------------------------------------------------------------------


def test_a_view_tells_where_everything_stands(tmp_path: Path) -> None:
    suite(tmp_path)
    lines = shown(tmp_path)
    vision = next(line for line in lines if "vision" in line)
    assert "960/1920" in vision and "25/s" in vision and "0:00:38" in vision
    assert sum(set(word) <= set(BLOCKS) for word in vision.split()) == 3
    assert vision.rstrip().endswith(" 111")  # the last Jacobian norm of the EMA
    language = next(line for line in lines if "language" in line)
    assert sum(set(word) <= set(BLOCKS) for word in language.split()) == 2
    counted = next(line for line in lines if line.startswith("vision") and "micro" in line)
    assert counted.split()[2:] == ["1", "completed", "1", "running", "1", "waiting", "1", "diverged", "1", "failed"]
    ended = "\n".join(lines[lines.index("last finished") :])
    assert "test/error 31.3 %" in ended and "at step 960" in ended and "out of memory" in ended


def test_a_cell_is_named_by_what_tells_it_from_the_others(tmp_path: Path) -> None:
    cells = [running(tmp_path, "over_training", seed) for seed in range(2)]
    write_experiment(tmp_path, "seeds", cells, "over_training")
    assert [cell.cell for cell in Watch(tmp_path, "seeds").look().running] == ["seed=0", "seed=1"]


def test_without_images_there_is_no_jacobian_column(tmp_path: Path) -> None:
    suite(tmp_path)
    assert "‖J‖²" in shown(tmp_path)[0]
    assert "‖J‖²" not in shown(tmp_path, experiment="language")[0]


def test_a_second_look_sees_what_has_changed(tmp_path: Path) -> None:
    cells = suite(tmp_path)
    watch = Watch(tmp_path, None)
    assert watch.look().running[1].step == 960
    folder = tmp_path / "runs" / cells[0]["folder"]
    with (folder / "metrics.jsonl").open("a") as stream:
        stream.write(line(1000, batch__loss=0.5, time__seconds=40.0))
    view = watch.look()
    assert view.running[1].step == 1000 and view.running[1].loss[-1] == (1000, 0.5)
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps(summary | {"status": "completed", "total_steps": 1000}))
    view = watch.look()
    assert [cell.experiment for cell in view.running] == ["language"]
    assert view.ended[0].cell.startswith("strength=0.015, seed=0")
    write_run(tmp_path, over_training_run(0.3, 0.015, seed=7))
    waited = write_run(tmp_path, over_training_run(0.02, 0.0, seed=3))
    write_experiment(tmp_path, "new", [waited], "over_training")
    assert [(one.experiment, one.counts["completed"]) for one in watch.look().experiments][1] == ("new", 1)
    (folder / "summary.json").write_text("{")
    assert watch.look().experiments[-1].counts["damaged"] == 1


def test_a_silent_run_whose_process_is_gone_is_interrupted(tmp_path: Path) -> None:
    cell = running(tmp_path, "over_training", 0)
    write_experiment(tmp_path, "one", [cell], "over_training")
    folder = tmp_path / "runs" / cell["folder"]
    watch = Watch(tmp_path, "one")
    assert watch.look().running_in_all == 1
    for name in ("metrics.jsonl", "summary.json"):
        os.utime(folder / name, (time.time() - 600, time.time() - 600))
    with (folder / "run.lock").open("a") as owner:
        fcntl.flock(owner, fcntl.LOCK_EX)
        assert watch.look().running_in_all == 1
        assert any("silent 0:10:0" in line for line in shown(tmp_path))
    view = watch.look()
    assert view.running_in_all == 0 and view.experiments[0].counts["interrupted"] == 1
    assert "nothing is running" in shown(tmp_path)[1]


def test_status_and_watch_count_alike(tmp_path: Path) -> None:
    suite(tmp_path)
    counts = sum((one.counts for one in Watch(tmp_path, None).look().experiments), start=Counter[str]())
    listed = status_table(tmp_path, None).splitlines()[-1]
    # Not the running ones: nobody holds their lock, which `status` looks at whatever they wrote a moment ago.
    for status in ("waiting", "failed", "diverged", "completed"):
        assert f"{counts[status]} {status}" in listed


def test_every_size_of_terminal_gets_lines_that_fit(tmp_path: Path) -> None:
    cells = [running(tmp_path, "over_training", seed) for seed in range(20)]
    cells += [write_run(tmp_path, over_training_run(0.3, 0.0, seed=seed)) for seed in range(9)]
    for number in range(6):
        write_experiment(tmp_path, f"a_long_name_{number}", cells, "over_training")
    for width in (1, 20, 40, 60, 80, 100, 132, 240):
        for height in (1, 2, 5, 10, 24, 50):
            lines = shown(tmp_path, width, height)
            assert 1 <= len(lines) <= height
            assert all(len(line) <= width for line in lines)
            text = "\n".join(lines)
            if width >= 60 and 10 <= height <= 24:
                assert re.search(r"… and \d+ more\n", text) and ("more experiments" in text) == (height == 10)
            if width >= 60 and height >= 24:
                assert any(block in text for block in BLOCKS)
                assert len(lines) == min(height, 35)
    # Every running cell is either shown or counted among those that are not.
    lines = shown(tmp_path, 100, 24)
    hidden = next(int(line.split()[2]) for line in lines if line.startswith("… and") and line.endswith("more"))
    assert hidden + sum("seed=" in line and "/1920" in line for line in lines) == 20


def test_a_thousand_runs_cost_little(tmp_path: Path) -> None:
    """Processor time of a look and a drawing: under 5 % of a core at a look every two seconds."""
    cells = []
    for seed in range(1000):
        run = under_training_run(0.05, seed=seed, steps=100, status="running" if seed % 2 == 0 else "completed")
        run.rows = run.rows[:3]
        cells.append(write_run(tmp_path, run))
    write_experiment(tmp_path, "many", cells, "under_training")
    watch = Watch(tmp_path, None)
    draw(watch.look(50), 160, 50)
    looks = 10
    started = time.process_time()
    for number in range(looks):
        for cell in cells[:100:2]:
            with (tmp_path / "runs" / cell["folder"] / "metrics.jsonl").open("a") as stream:
                stream.write(line(200 + number, batch__loss=1.0, time__seconds=float(number)))
        draw(watch.look(50), 160, 50)
    used = (time.process_time() - started) / looks
    assert used < 0.05 * 2


COLOUR = r"\x1b\[3[1-6](;49)?m"
"""Red to cyan, the terminal's own."""


# -- the terminal ------------------------------------------------------------------------------------------------


class Terminal:
    """A pseudo-terminal with the live view in it."""

    def __init__(self, results: Path, *words: str, columns: int = 140, rows: int = 40, **environment: str) -> None:
        self.outer, self.inner = pty.openpty()
        self.resize(columns, rows)
        self.before = termios.tcgetattr(self.inner)
        kept = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR")}
        self.process = subprocess.Popen(
            [sys.executable, "-c", COMMAND, f"results={results}", "every=0.2", *words],
            stdin=self.inner,
            stdout=self.inner,
            stderr=self.inner,
            env={**kept, "TERM": "xterm-256color", **environment},
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        self.output = ""

    def resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self.outer, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, keys: bytes) -> None:
        os.write(self.outer, keys)

    def read(self, until: str = "", seconds: float = 60.0) -> str:
        """What is shown until `until` is among it, or the process has ended."""
        end, new = time.monotonic() + seconds, b""
        while time.monotonic() < end and not (until and until in new.decode(errors="ignore")):
            if select.select([self.outer], [], [], 0.1)[0]:
                new += os.read(self.outer, 65536)
            elif self.process.poll() is not None:
                break
        self.output += new.decode(errors="ignore")
        return new.decode(errors="ignore")

    def left_as_it_was(self) -> bool:
        """Normal screen, cursor and terminal modes are back."""
        out = self.output
        screen = out.rfind("\x1b[?1049l") > out.rfind("\x1b[?1049h") >= 0
        cursor = out.rfind("\x1b[?25h") > out.rfind("\x1b[?25l") >= 0
        return screen and cursor and termios.tcgetattr(self.inner) == self.before

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.outer)
        os.close(self.inner)


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Any]:
    opened: list[Terminal] = []

    def start(*words: str, **options: Any) -> Terminal:
        suite(tmp_path)
        opened.append(Terminal(tmp_path, *words, **options))
        return opened[-1]

    yield start
    for one in opened:
        one.close()


@pytest.mark.parametrize("way", ["q", "Ctrl-C", "SIGTERM"])
def test_it_shows_sparklines_and_leaves_the_terminal_as_it_was(terminal: Any, way: str) -> None:
    watched = terminal()
    text = watched.read("█")
    assert "█" in text, text
    assert "\x1b[?1049h" in text
    if way == "q":
        watched.type(b"q")
    elif way == "Ctrl-C":
        watched.type(b"\x03")
    else:
        watched.process.send_signal(signal.SIGTERM)
    watched.read(seconds=30)
    assert watched.process.wait(timeout=30) == 0, watched.output
    assert watched.left_as_it_was()
    assert "Traceback" not in watched.output


def test_a_new_size_and_new_lines_are_drawn(terminal: Any, tmp_path: Path) -> None:
    watched = terminal(columns=140, rows=40)
    watched.read("last finished")
    watched.resize(48, 12)
    watched.read("…")
    summaries = (tmp_path / "runs").glob("over_training-*/summary.json")
    (folder,) = [path.parent for path in summaries if json.loads(path.read_text())["status"] == "running"]
    with (folder / "metrics.jsonl").open("a") as stream:
        stream.write(line(1234, batch__loss=0.5, time__seconds=50.0))
    assert "1234/1920" in watched.read("1234/1920")
    watched.type(b"x")  # a key that means nothing
    watched.type(b"q")
    watched.read(seconds=30)
    assert watched.process.wait(timeout=30) == 0
    assert watched.left_as_it_was()


def test_after_ctrl_z_it_goes_on(terminal: Any) -> None:
    """The screen is left, the process stops, and it draws again where it goes on."""
    watched = terminal()
    watched.read("last finished")
    watched.type(b"\x1a")
    assert "\x1b[?1049l" in watched.read("\x1b[?1049l")
    os.waitid(os.P_PID, watched.process.pid, os.WSTOPPED)
    watched.process.send_signal(signal.SIGCONT)  # what a shell's fg sends
    watched.read("last finished")
    watched.type(b"q")
    watched.read(seconds=30)
    assert watched.process.wait(timeout=30) == 0
    assert watched.output.count("\x1b[?1049h") == 2
    assert watched.left_as_it_was()


def test_no_color_is_honoured(terminal: Any) -> None:
    watched = terminal(NO_COLOR="1")
    watched.read("last finished")
    watched.type(b"q")
    watched.read(seconds=30)
    assert watched.process.wait(timeout=30) == 0
    assert not re.search(COLOUR, watched.output)


def test_colours_are_used_otherwise(terminal: Any) -> None:
    assert re.search(COLOUR, terminal().read("last finished"))


def test_a_filter_narrows_and_escape_shows_all(terminal: Any) -> None:
    watched = terminal()
    watched.read("last finished")
    watched.type(b"/")
    watched.read("show only")
    watched.type(b"no such cell")
    assert "nothing is running" in watched.read("nothing is running")
    watched.type(b"\r")
    watched.read("only no such cell")
    watched.type(b"\x1b")
    assert "960/1920" in watched.read("960/1920")
    watched.type(b"q")
    watched.read(seconds=30)
    assert watched.process.wait(timeout=30) == 0
    assert watched.left_as_it_was()


def test_the_view_keeps_what_contains_the_text(tmp_path: Path) -> None:
    suite(tmp_path)
    view = Watch(tmp_path, None).look()
    first = view.experiments[0].experiment
    narrowed = view.containing(first.upper())
    assert [one.experiment for one in narrowed.experiments] == [first]
    assert {one.experiment for one in (*narrowed.running, *narrowed.ended)} <= {first}
    assert view.containing("") == view


@pytest.mark.parametrize("words", [["once"], []])
def test_a_dumb_terminal_and_once_get_lines_and_an_end(terminal: Any, words: list[str]) -> None:
    watched = terminal(*words, **({} if words else {"TERM": "dumb"}))
    text = watched.read(seconds=60)
    assert watched.process.wait(timeout=30) == 0
    assert "last finished" in text and "\x1b[?1049h" not in text


def test_a_pipe_gets_one_snapshot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    suite(tmp_path)
    assert COMMANDS["watch"]([f"results={tmp_path}"]) == 0
    text = capsys.readouterr().out
    assert "960/1920" in text and "█" in text and "\x1b" not in text


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["every=0"], "every must be"),
        (["every=x"], "every must be"),
        (["a", "b"], "one experiment at a time"),
        (["no_such"], "No experiment named"),
        (["lr=3"], "not known here"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path: Path, words: list[str], told: str) -> None:
    suite(tmp_path)
    with pytest.raises(UserError, match=told):
        COMMANDS["watch"]([*words, f"results={tmp_path}"])
    with pytest.raises(UserError, match="No experiment was started"):
        empty = tmp_path / "empty"
        empty.mkdir()
        COMMANDS["watch"]([f"results={empty}"])
