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
from jaxformer.footprint.emissions import Emissions, Overlap, next_segment, overlap, read_emissions
from jaxformer.footprint.measure import Footprint, FootprintConfig
from jaxformer.footprint.share import ProcessorTime, processor_time, share_of_gpu

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
    for number in range(3):
        run = Footprint(tmp_path / str(number), FootprintConfig()).start()
        time.sleep(0.03 * 5**number)  # far apart, for a busy machine
        run.flush()
        run.stop()
    assert time.perf_counter() - begun < 2.5  # about 1 s; starting the tracker anew takes 2 s each
    seconds = [read_emissions(tmp_path / str(number)).seconds for number in range(3)]
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


@pytest.mark.parametrize(
    ("own", "machine", "share"),
    [(0, 10, 0.0), (2.5, 10, 0.25), (10, 10, 1.0), (0, 0, None), (3, 0, 1.0), (10.01, 10, 1.0), (-1, 10, 0.0)],
)
def test_the_share_of_the_load_is_processor_time_over_all_of_it(own, machine, share):
    assert ProcessorTime(5 + own, 70 + machine).share_since(ProcessorTime(5, 70)) == share


def test_processor_time_is_that_of_the_process_and_of_what_it_has_started():
    before = processor_time()
    until = time.process_time() + 0.15
    while time.process_time() < until:
        pass
    spin = "import time\nwhile time.process_time() < 0.25: pass"
    subprocess.run([sys.executable, "-S", "-c", spin], check=True)
    after = processor_time()
    assert 0.3 < after.own - before.own < 2
    assert after.own - before.own <= after.machine - before.machine + 0.05
    assert 0 < after.share_since(before) <= 1


def test_a_gpu_is_shared_by_those_that_compute_on_it():
    own, other = os.getpid(), os.getppid()
    assert share_of_gpu([], [own], 0.3) == 0.3  # nobody's: as the processor
    assert share_of_gpu([own], [own], 0.3) == 1.0
    assert share_of_gpu([own, other], [own], 0.3) == 0.5
    assert share_of_gpu([other], [own], 0.3) == 0.0
    assert share_of_gpu([2**30, 2**30 + 1], [own], 0.3) == 0.5  # numbers of the host, seen from a container


class Machine:
    """A machine of 100 W for its processor and 20 W for memory, 300 W for its GPU, and its clocks."""

    def __init__(self, monkeypatch):
        self.seconds, self.busy, self.processes = 0.0, 0.0, {}
        monkeypatch.setattr(footprint.time, "perf_counter", lambda: self.seconds)
        monkeypatch.setattr(footprint, "_start_tracker", lambda settings, write: self.track(write))

    def track(self, write):
        machine, began = self, self.seconds

        class Tracker:
            def flush(self):
                hours = (machine.seconds - began) / 3.6e6
                parts = {"cpu_energy": 100 * hours, "ram_energy": 20 * hours, "gpu_energy": 300 * hours}
                total = sum(parts.values())
                write(
                    {"run_id": "a", "duration": machine.seconds - began, "emissions": total / 2, "country_name": None}
                    | {"energy_consumed": total, "water_consumed": total, "cpu_power": 100.0} | parts
                )  # fmt: skip

            stop = flush

        return Tracker()

    def run(self, folder, mode, monkeypatch):
        name = folder.name
        self.processes[name] = 0.0

        def now():
            return ProcessorTime(self.processes[name], self.busy)

        with monkeypatch.context() as patch:
            patch.setattr(footprint, "processor_time", now)
            made = Footprint(folder, FootprintConfig(tracking_mode=mode))
        made.clock = now
        return made

    def flush(self, run, monkeypatch, gpu, stops=False):
        with monkeypatch.context() as patch:
            patch.setattr(footprint, "processor_time", run.clock)
            patch.setattr(footprint, "gpu_share", lambda load: gpu)
            if run._thread is None and run._tracker is None:
                run.start()._thread.join()
            run.stop() if stops else run.flush()

    def passes(self, seconds, **loads):
        """Let time pass; `others` is the load of processes that are no runs."""
        self.seconds += seconds
        self.busy += seconds * sum(loads.values())
        for name, load in loads.items():
            if name in self.processes:
                self.processes[name] += seconds * load


def test_runs_at_once_are_charged_no_more_than_the_machine_has_used(tmp_path, monkeypatch):
    machine = Machine(monkeypatch)
    first, second = (machine.run(tmp_path / name, "process", monkeypatch) for name in ("first", "second"))
    whole = machine.run(tmp_path / "whole", "machine", monkeypatch)
    for run in (first, second, whole):
        machine.flush(run, monkeypatch, 0.5)
    for seconds, loads in ((10, {"first": 1.5, "second": 0.5}), (20, {"first": 0.5, "second": 0.5, "others": 1.0})):
        machine.passes(seconds, **loads)
        for run in (first, second, whole):
            machine.flush(run, monkeypatch, 0.5)
    machine.passes(10, second=1.0)  # the first has ended
    machine.flush(second, monkeypatch, 1.0, stops=True)
    machine.flush(whole, monkeypatch, 1.0, stops=True)
    one, other, all_of_it = (read_emissions(tmp_path / name) for name in ("first", "second", "whole"))
    joules = 3.6e6
    assert one.cpu_kwh * joules == pytest.approx(100 * (10 * 0.75 + 20 * 0.25))
    assert other.cpu_kwh * joules == pytest.approx(100 * (10 * 0.25 + 20 * 0.25 + 10))
    assert one.ram_kwh * joules == pytest.approx(20 * (10 * 0.75 + 20 * 0.25))
    assert one.gpu_kwh * joules == pytest.approx(300 * 30 * 0.5)
    assert other.gpu_kwh * joules == pytest.approx(300 * (30 * 0.5 + 10))
    assert one.energy_kwh == pytest.approx(one.cpu_kwh + one.ram_kwh + one.gpu_kwh)
    assert one.emissions_kg == pytest.approx(one.energy_kwh / 2)
    assert all_of_it.energy_kwh * joules == pytest.approx(420 * 40)
    assert one.energy_kwh + other.energy_kwh < all_of_it.energy_kwh
    assert (one.tracking_mode, all_of_it.tracking_mode) == ("process", "machine")
    assert "footprint.tracking_mode=process" in str(one) and "whole machine" in str(all_of_it)


_VALUES = "tracking_mode,run_id,duration,emissions,cpu_energy,gpu_energy,ram_energy,energy_consumed,country_name"
NAMED, OLD = f"machine,ended,{_VALUES}", f"timestamp,cpu_model,{_VALUES}"


def measured(folder: Path, *starts: str, header: str = NAMED) -> Emissions:
    for number, start in enumerate(starts, 1):
        write_csv(folder, f"{number}-0.csv", f"{start},a,100,0.5,1,2,3,6,France", header=header)
    return read_emissions(folder)


def test_energy_that_is_counted_twice_is_known_from_the_times(tmp_path):
    shared = [measured(tmp_path / name, f"A,{end},process") for name, end in (("a", 1000), ("b", 1060))]
    assert overlap(shared) == Overlap(40.0, 2, 0.0, 0)
    whole = measured(tmp_path / "c", "A,1090,machine")
    assert overlap([*shared, whole]) == Overlap(40.0, 2, 10.0 + 70.0, 3)
    elsewhere = measured(tmp_path / "d", "B,1000,machine")
    later = measured(tmp_path / "e", "A,2000,machine")
    assert overlap([shared[0], elsewhere, later]) == Overlap()
    # The segments and processes of one run are its own affair.
    assert overlap([measured(tmp_path / "f", "A,1000,process", "A,1000,process")]) == Overlap()
    assert measured(tmp_path / "g", "A,1000,process", "A,3000,machine").tracking_mode == "mixed"


def test_files_from_before_machines_were_named_are_of_the_whole_machine(tmp_path):
    ends = {"a": "03:04:00", "b": "03:04:30"}
    old = [measured(tmp_path / name, f"2026-01-02T{end},M,machine", header=OLD) for name, end in ends.items()]
    assert [emissions.tracking_mode for emissions in old] == ["machine", "machine"]
    assert overlap(old) == Overlap(0.0, 0, 70.0, 2)
    other = measured(tmp_path / "c", "2026-01-02T03:04:00,another,machine", header=OLD)
    assert overlap([old[0], other]) == Overlap()
    assert overlap([old[0], measured(tmp_path / "d", "soon,M,machine", header=OLD)]) == Overlap()
