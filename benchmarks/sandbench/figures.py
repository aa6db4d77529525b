"""The figures of a run, one JSON file that the report reads. Units are in the names."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field

Rounds = dict[str, list[float]]
"""One figure a round for each way; the same place in two lists is the same round."""


class Record(BaseModel):
    """A frozen model that refuses unknown fields: a report reads figures of its version only."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Machine(Record):
    """The machine, the commit and the time of the run."""

    date: str
    cpu: str
    cores: int
    memory_gib: float
    kernel: str
    cgroup_version: int
    runsc: str
    redis: str
    python: str
    is_rcu_expedited: bool
    load_at_start: float
    commit: str


class Latency(Record):
    """Time from the request of one job to its end, on an idle machine."""

    program: str
    ms: Rounds


class Burst(Record):
    """`size` jobs requested at once: when half of them and when all had ended."""

    program: str
    size: int
    median_ms: Rounds
    last_ms: Rounds


class Throughput(Record):
    """Jobs a second with `at_once` jobs at a time, all cores busy."""

    program: str
    at_once: int
    per_second: Rounds


class Cost(Record):
    """CPU and memory of one job, with a job on each core; None is not counted apart."""

    program: str
    way: str
    jobs: int
    sandbox_cpu_ms: float | None = None
    worker_cpu_ms: float | None = None
    redis_cpu_ms: float | None = None
    producer_cpu_ms: float | None = None
    total_cpu_ms: float
    memory_peak_mib: float | None = None

    @property
    def outside_ms(self) -> float | None:
        """The CPU outside of the sandboxes: worker, Redis and producer."""
        parts = (self.worker_cpu_ms, self.redis_cpu_ms, self.producer_cpu_ms)
        return None if None in parts else sum(part for part in parts if part is not None)


class InFlight(Record):
    """Memory (PSS) of one worker without its sandboxes, while `jobs` run.

    Also that of stock prefork with `children` children.
    """

    jobs: int
    worker_mib: float
    idle_worker_mib: float
    children: int
    prefork_mib: float
    prefork_child_mib: float


class Bulk(Record):
    """Jobs a second that one process submits and collects; each of our rounds has `jobs`."""

    jobs: int
    stock_jobs: int
    enqueue_per_second: Rounds
    collect_per_second: Rounds


class Recovery(Record):
    """Seconds from a worker's kill -9 to the new start of its jobs elsewhere, one a trial."""

    lease_seconds: float
    seconds: list[float]


class Growth(Record):
    """The cost of one stand-in job on real workers, by the number of queued jobs or of workers."""

    kind: Literal["queued", "workers"]
    number: int
    jobs: int
    per_second: float
    worker_cpu_us: float
    redis_cpu_us: float
    redis_calls: float


class Upkeep(Record):
    """Requests to Redis a second by one of `workers` idle workers.

    No job begins or ends meanwhile. Measured with free slots, and with none.
    """

    workers: int
    idle_cpu_us: float
    idle_calls: float
    busy_cpu_us: float
    busy_calls: float


class OneWorker(Record):
    """The limit of one worker process that does everything but run runsc, and its CPU a job."""

    per_second: float
    cpu_us: float


class WorkerProcesses(Record):
    """One host with `number` worker processes, whose runsc is a stand-in.

    Its CPU a job is that of all processes, and `busy_cores` what everything on the machine used.
    """

    number: int
    per_second: float
    worker_cpu_us: float
    redis_cpu_us: float
    busy_cores: float


class Limit(Record):
    """One Redis driven by `clients` processes that claim and finish without Celery or sandboxes."""

    clients: int
    per_second: float
    redis_busy: float
    """Share of one core that Redis used."""
    redis_cpu_us: float


class Store(Record):
    """The cost of a job in Redis: CPU of each step in microseconds, memory in bytes."""

    queued_bytes: float
    ended_bytes: float
    output_bytes: int
    network_bytes: float
    """Bytes to and from Redis, from submit to collected outcome, without real workers' events."""
    submit_cpu_us: float
    collect_cpu_us: float
    commands: dict[str, tuple[float, float]] = Field(default_factory=dict)
    """Command -> (calls a job, microseconds a call), from INFO commandstats.

    The calls of a script count in it too.
    """


class RedisUse(Record):
    """Count the script calls and bytes of one job, from submit to collected outcome.

    They are Redis's counters, divided by `jobs`.
    """

    jobs: int
    seconds: float
    """All of them took; beats and looks in vain, some a second, are in the figures."""
    script_calls: float
    input_bytes: float
    output_bytes: float


class PreparedStarts(Record):
    """Jobs of a program with its interpreter started ahead, beside warm ones and bare runsc."""

    release: str
    program: str
    ms: Rounds
    """Time from the submit of one job to its outcome, on an idle machine."""
    at_once: int
    per_second: Rounds
    """Jobs a second, `at_once` at a time."""
    prepared_share: float | None = None
    """How many of the single jobs of the prepared way started so; None without that way."""
    outside_ms: float | None = None
    """CPU of worker, Redis and producer for one job of the warm way, `at_once` at a time."""


class FileRate(Record):
    """Jobs that each read a file and leave one of `file_mib` MiB, and cp(1) of as many bytes."""

    jobs: int
    file_mib: int
    seconds: float
    copy_seconds: float
    worker_mib_before: float
    worker_mib_after: float

    @property
    def mib_per_second(self) -> float:
        """MiB in and out together, a second."""
        return 2 * self.jobs * self.file_mib / self.seconds

    @property
    def copied_mib_per_second(self) -> float:
        """The same of cp."""
        return 2 * self.jobs * self.file_mib / self.copy_seconds


class History(Record):
    """A history of so many ended runs: how long it took to store, and each question of the pages."""

    rows: int
    store_seconds: float
    size_bytes: int
    ms: dict[str, float]


class Figures(Record):
    """All figures of one run; a part that was not requested is empty."""

    machine: Machine
    is_quick: bool
    took_seconds: float = 0.0
    absent: dict[str, str] = Field(default_factory=dict)
    """Ways that could not be measured here, and the reason of each."""
    latency: list[Latency] = Field(default_factory=list)
    bursts: list[Burst] = Field(default_factory=list)
    throughput: list[Throughput] = Field(default_factory=list)
    cost: list[Cost] = Field(default_factory=list)
    in_flight: InFlight | None = None
    bulk: Bulk | None = None
    recovery: Recovery | None = None
    growth: list[Growth] = Field(default_factory=list)
    upkeep: Upkeep | None = None
    one_worker: OneWorker | None = None
    worker_processes: list[WorkerProcesses] = Field(default_factory=list)
    limit: list[Limit] = Field(default_factory=list)
    store: Store | None = None
    redis_use: RedisUse | None = None
    prepared: list[PreparedStarts] = Field(default_factory=list)
    file_rate: FileRate | None = None
    history: History | None = None

    def joined(self, later: Self) -> Self:
        """Return this run with the parts of `later`, made in the same place with the same code.

        Raises:
            ValueError: it was not.
        """
        machine = self.machine.model_copy(update={"load_at_start": later.machine.load_at_start})
        if (machine, self.is_quick) != (later.machine, later.is_quick):
            raise ValueError("the last run was of other code, another machine, day or length: run all parts again")
        parts = later.model_dump(exclude={"machine", "is_quick", "took_seconds", "absent"})
        measured = {name for name, part in parts.items() if part}
        load = max(self.machine.load_at_start, later.machine.load_at_start)
        return self.model_copy(
            update={
                **{name: getattr(later, name) for name in measured},
                "machine": machine.model_copy(update={"load_at_start": load}),
                "took_seconds": self.took_seconds + later.took_seconds,
                "absent": self.absent | later.absent,
            }
        )

    def find_latency(self, program: str) -> Latency | None:
        """Return the latencies of a program."""
        return next((item for item in self.latency if item.program == program), None)

    def find_throughput(self, program: str, at_once: int) -> Throughput | None:
        """Return the rates of a program at one concurrency."""
        found = (item for item in self.throughput if (item.program, item.at_once) == (program, at_once))
        return next(found, None)

    def find_cost(self, program: str, way: str) -> Cost | None:
        """Return what a program costs one way."""
        return next((item for item in self.cost if (item.program, item.way) == (program, way)), None)
