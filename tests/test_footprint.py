"""What a run cost: segments, kills, several processes, a quiet terminal."""

import csv
import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from jaxformer.errors import UserError
from jaxformer.footprint import measure as footprint
from jaxformer.footprint.emissions import Emissions, next_segment, read_emissions
from jaxformer.footprint.measure import Footprint, FootprintConfig

COLUMNS = (
    "timestamp,run_id,duration,emissions,cpu_energy,gpu_energy,ram_energy,energy_consumed,water_consumed,country_name"
)

MACHINE = FootprintConfig(tracking_mode="machine")


def write_csv(run_dir: Path, name: str, *rows: str, header: str = COLUMNS) -> Path:
    path = run_dir / "emissions" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join((header, *rows)) + "\n")
    return path


def start_script(tmp_path: Path, body: str, **environment: str) -> subprocess.Popen[str]:
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom jaxformer.footprint.measure import *\n"
        + textwrap.dedent(body)
    )
    return subprocess.Popen(
        [sys.executable, "-W", "default", "-c", script, str(tmp_path / "run")],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_kill_loses_only_the_time_since_the_last_flush(tmp_path):
    process = start_script(
        tmp_path,
        """
        footprint = Footprint(Path(sys.argv[1]), FootprintConfig(country_iso_code="FRA")).start()
        footprint._thread.join()
        time.sleep(0.6)
        footprint.flush()
        print("flushed", time.perf_counter() - footprint._begun, flush=True)
        time.sleep(60)
        """,
    )
    assert process.stdout is not None
    flushed = float(process.stdout.readline().split()[1])
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.communicate()
    emissions = read_emissions(tmp_path / "run")
    assert emissions.segments == 1 and emissions.unreadable == 0
    assert emissions.seconds == pytest.approx(flushed, abs=0.1)
    assert emissions.energy_kwh > 0 and emissions.country == "France"
    # France's 56 g per kWh (Ember), as CodeCarbon ships it.
    assert emissions.emissions_kg == pytest.approx(0.056 * emissions.energy_kwh, rel=0.01)
    parts = emissions.cpu_kwh + emissions.gpu_kwh + emissions.ram_kwh
    assert parts == pytest.approx(emissions.energy_kwh)

    # The run is taken up again: a second segment, and the first one's energy is kept.
    resumed = Footprint(tmp_path / "run", FootprintConfig(country_iso_code="FRA")).start()
    resumed.stop()
    assert sorted(path.name for path in (tmp_path / "run" / "emissions").iterdir()) == ["1-0.csv", "2-0.csv"]
    total = read_emissions(tmp_path / "run")
    assert total.segments == 2 and total.energy_kwh > emissions.energy_kwh and total.seconds > emissions.seconds


def test_flushing_while_codecarbon_measures_disturbs_neither(tmp_path, monkeypatch):
    failures = []
    monkeypatch.setattr(threading, "excepthook", failures.append)
    measured = Footprint(tmp_path / "run", FootprintConfig(measure_power_secs=0.001)).start()
    measured._ready.wait(30)
    threads = [threading.Thread(target=lambda: [measured.flush() for _ in range(100)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    measured.stop()
    assert not failures
    assert read_emissions(tmp_path / "run").segments == 1


def test_a_run_that_ends_at_once_is_silent_and_leaves_one_file(tmp_path):
    process = start_script(
        tmp_path,
        """
        footprint = Footprint(Path(sys.argv[1]), FootprintConfig()).start()
        footprint.flush()
        footprint.stop()
        footprint.stop()
        footprint.flush()
        """,
        CODECARBON_LOG_LEVEL="debug",
        CODECARBON_SAVE_TO_FILE="true",
    )
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output, errors) == (0, "", "")
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()] == [
        os.path.join("run", "emissions", "1-0.csv")
    ]
    # No country was named: the world average of 475 g per kWh.
    emissions = read_emissions(tmp_path / "run")
    assert emissions.country == "" and emissions.emissions_kg == pytest.approx(0.475 * emissions.energy_kwh)


def test_processes_of_a_run_on_one_machine_count_it_once(tmp_path):
    body = """
        config = FootprintConfig(tracking_mode="machine")
        footprint = Footprint(Path(sys.argv[1]), config, process_index={index}).start()
        footprint._thread.join()
        print("ready", flush=True)
        time.sleep({pause})
        footprint.stop()
    """
    first = start_script(tmp_path, body.format(index=0, pause=60))
    assert first.stdout is not None and first.stdout.readline() == "ready\n"
    others = [
        start_script(tmp_path, body.format(index=1, pause=0)),
        start_script(tmp_path, body.format(index=2, pause=0), CUDA_VISIBLE_DEVICES="7"),
    ]
    for process in others:
        assert process.communicate(timeout=60)[1] == "" and process.returncode == 0
    first.kill()
    first.communicate()
    rows = {}
    for path in (tmp_path / "run" / "emissions").glob("*.csv"):
        with path.open() as file:
            rows[path.name] = next(csv.DictReader(file))
    # Process 1 sees the same machine, so process 0 speaks for it; process 2 has a GPU of its own to count, no more.
    assert sorted(rows) == ["1-0.csv", "1-2.csv"]
    assert float(rows["1-0.csv"]["ram_power"]) > 0
    assert float(rows["1-2.csv"]["ram_power"]) == 0 and float(rows["1-2.csv"]["cpu_power"]) == 0


def test_processes_that_write_elsewhere_still_count_one_machine_once(tmp_path):
    run = Path("gs://bucket/run")
    both = [Footprint(tmp_path / str(index), MACHINE, index, run=run).start() for index in range(2)]
    for measured in both:
        measured.stop()
    assert len(list(tmp_path.rglob("*.csv"))) == 1


def test_later_runs_in_a_process_are_cheap_and_separate(tmp_path):
    Footprint(tmp_path / "warm", FootprintConfig()).start().stop()
    begun = time.perf_counter()
    for number in range(5):
        run = Footprint(tmp_path / str(number), FootprintConfig()).start()
        time.sleep(0.02 * (number + 1))
        run.flush()
        run.stop()
    assert time.perf_counter() - begun < 1.5  # about 0.4 s; starting the tracker anew takes 2 s each
    seconds = [read_emissions(tmp_path / str(number)).seconds for number in range(5)]
    assert seconds == sorted(seconds) and seconds[0] < 0.3


class FakeTracker:
    """CodeCarbon with known numbers: 100 W since `start`, seen from the clock of the test."""

    def __init__(self, write, durations):
        self.write, self.durations, self.calls = write, iter(durations), []

    def flush(self):
        duration = next(self.durations)
        kwh = 100 * duration / 3.6e6
        names = ("cpu_energy", "gpu_energy", "ram_energy", "water_consumed")
        self.write(
            {"run_id": "a", "duration": duration, "emissions": kwh / 2, "energy_consumed": kwh}
            | dict.fromkeys(names, kwh / 4)
            | {"country_name": None, "cpu_power": 100.0}
        )

    def stop(self):
        self.calls.append("stop")
        self.flush()


def test_seconds_before_the_tracker_was_ready_are_charged_at_the_mean_power(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(footprint.time, "perf_counter", lambda: clock[0])
    trackers = []

    def start(settings, write):
        clock[0] = 4.0  # ready after four seconds
        trackers.append(FakeTracker(write, [0.001, 6.0, 16.0]))
        return trackers[0]

    monkeypatch.setattr(footprint, "_start_tracker", start)
    run = Footprint(tmp_path, MACHINE).start()
    run._thread.join()
    clock[0] = 10.0
    run.flush()
    assert read_emissions(tmp_path).energy_kwh == pytest.approx(100 * 10 / 3.6e6)
    clock[0] = 20.0
    run.stop()
    run.stop()
    emissions = read_emissions(tmp_path)
    assert emissions.seconds == 20.0 and emissions.energy_kwh == pytest.approx(100 * 20 / 3.6e6)
    assert emissions.emissions_kg == pytest.approx(emissions.energy_kwh / 2)
    assert trackers[0].calls == ["stop"]


def test_a_tracker_that_fails_is_named_once_and_never_stops_the_run(tmp_path, monkeypatch, caplog):
    def fail(settings, write):
        raise RuntimeError("no hardware here")

    monkeypatch.setattr(footprint, "_start_tracker", fail)
    with caplog.at_level(logging.WARNING, "jaxformer.footprint.measure"):
        run = Footprint(tmp_path, FootprintConfig()).start()
        run.flush()
        run.stop()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "footprint.enabled=False" in caplog.text and read_emissions(tmp_path) == Emissions()

    class Broken(FakeTracker):
        def flush(self):
            if self.calls:
                raise OSError("disk full")
            self.calls.append("flush")
            super().flush()

    monkeypatch.setattr(footprint, "_start_tracker", lambda settings, write: Broken(write, [1.0]))
    run = Footprint(tmp_path, FootprintConfig()).start()
    run._thread.join()
    run.flush()
    run.stop()
    assert read_emissions(tmp_path).segments == 1


def test_disabled_writes_nothing_and_starts_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(footprint, "_start_tracker", lambda settings, write: pytest.fail("started"))
    run = Footprint(tmp_path / "run", FootprintConfig(enabled=False)).start()
    run.flush()
    run.stop()
    assert not (tmp_path / "run").exists()


def test_reading_sums_segments_and_processes_by_column_name(tmp_path):
    write_csv(tmp_path, "1-0.csv", "t,a,100,0.5,1,2,3,6,0,France")
    write_csv(tmp_path, "1-1.csv", "t,b,110,0.25,1,1,1,3,0,France")
    # Other column order, an unknown column, and cumulative rows of one run: the last counts.
    write_csv(
        tmp_path,
        "2-0.csv",
        "France,c,1,1,10,0.1,0.5,0.25,0.25,x",
        "France,c,2,2,20,0.2,1.0,0.50,0.50,x",
        header="country_name,run_id,emissions,energy_consumed,duration,wue,cpu_energy,gpu_energy,ram_energy,new",
    )
    write_csv(tmp_path, "notes.csv", "anything")
    emissions = read_emissions(tmp_path)
    assert emissions == Emissions(11.0, 2.75, 130.0, 2, 3.0, 3.5, 4.5, "France", 0)
    assert next_segment(tmp_path, 0) == 3 and next_segment(tmp_path, 1) == 2 and next_segment(tmp_path / "no", 0) == 1


@pytest.mark.parametrize(
    "content", ["", COLUMNS + "\n", COLUMNS + "\nt,a,100,0.5,1,2", "\x00\x01", COLUMNS + "\nt,a,nan,1,1,1,1,1,1,F\n"]
)
def test_a_torn_file_is_counted_and_left_out(tmp_path, content):
    write_csv(tmp_path, "1-0.csv", "t,a,100,0.5,1,2,3,6,0,France")
    (tmp_path / "emissions" / "2-0.csv").write_text(content)
    emissions = read_emissions(tmp_path)
    assert emissions.energy_kwh == 6.0 and emissions.segments == 1 and emissions.unreadable == 1


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"country_iso_code": "XYZ"}, "footprint.country_iso_code: no country 'XYZ'; give three letters"),
        ({"country_iso_code": "fra"}, "did you mean 'FRA'?"),
        ({"country_iso_code": "France"}, "did you mean 'FRA'?"),
        ({"pue": 0.5}, "footprint.pue: 0.5 must be at least 1"),
        ({"pue": float("nan")}, "footprint.pue: nan must be at least 1"),
        ({"measure_power_secs": 0}, "footprint.measure_power_secs: 0 must be above 0"),
        ({"tracking_mode": "machin"}, "did you mean 'machine'?"),
    ],
)
def test_impossible_settings_are_refused(values, words):
    with pytest.raises(UserError, match="footprint") as error:
        FootprintConfig(**values)
    assert words in str(error.value)
