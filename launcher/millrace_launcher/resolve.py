"""Flags and facts to one frozen `LaunchPlan`. Pure: it reads no file, no clock and no environment of its own."""

from __future__ import annotations

import ipaddress
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from millrace_launcher.errors import LauncherError, Variant, argument_error
from millrace_launcher.flag import Status, Target
from millrace_launcher.flags import FLAG_TABLE, Arguments
from millrace_launcher.hardware import Machine

DEFAULT_STEP_TOKENS = 4096
# On CPUs more tokens are computed no faster each, and who generates waits for all of them.
DEFAULT_STEP_TOKENS_ON_CPUS = 512
SECRET_ENVIRONMENT = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_API_TOKEN", "NGROK_AUTHTOKEN", "API_KEY")
PANIC_EXIT_CODE = 101  # what the original's process ends with here


@dataclass(frozen=True)
class Command:
    """A program with all that it is told; `repr` and logs show the words only, which never hold a secret."""

    argv: tuple[str, ...]
    environment: Mapping[str, str]

    def __repr__(self) -> str:
        return f"Command({' '.join(self.argv)})"

    def listening_on(self, descriptor: int) -> Command:
        """With a socket that it gets as systemd would pass it on. Nothing is left of the launcher's own such socket."""
        sockets = {"LISTEN_FDS": "1", "LISTEN_FDS_FIRST_FD": str(descriptor), "LISTEN_PID": ""}
        return replace(self, environment={**self.environment, **sockets})


@dataclass(frozen=True)
class Programs:
    """How the children are started, without their flags. `converter` makes safetensors of pickled weights."""

    worker: tuple[str, ...]
    router: tuple[str, ...]
    converter: tuple[str, ...] = ()


@dataclass(frozen=True)
class Settled:
    """Flags that passed every check: shards counted, aliases and defaults worked out."""

    arguments: Arguments
    num_shard: int
    compute_type: str | None
    notices: tuple[str, ...]

    def at_commit(self, commit: str | None) -> Settled:
        """With the commit in the place of the branch or tag that led to it; None changes nothing."""
        return self if commit is None else replace(self, arguments=replace(self.arguments, revision=commit))


@dataclass(frozen=True)
class LaunchPlan:
    """What runs: one router and `num_shard` workers. Every child is configured by this plan and by nothing else.

    `model_path` None: the model is not there yet. The router can be started all the same, and is told later.
    """

    model_id: str
    num_shard: int
    router: Command
    worker_argv: tuple[str, ...]
    worker_environment: Mapping[str, str]
    master_addr: str
    master_port: int | None
    health_host: str
    hostname: str
    port: int
    termination_timeout: float
    longest_restart_wait: float
    dump_folder: Path
    model_path: Path | None
    revision: str | None

    def worker(self, rank: int, generation: int, master_port: int | None) -> Command:
        """The command of one rank; ranks of one group share the port, a single rank needs none."""
        group = {"RANK": str(rank), "WORLD_SIZE": str(self.num_shard), "MILLRACE_GENERATION": str(generation)}
        if master_port is not None:
            group |= {"MASTER_ADDR": self.master_addr, "MASTER_PORT": str(master_port)}
        return Command(self.worker_argv, {**self.worker_environment, **group})

    @property
    def url(self) -> str:
        host = f"[{self.hostname}]" if ":" in self.hostname else self.hostname
        return f"http://{host}:{self.port}"


def settle(arguments: Arguments, machine: Machine, environment: Mapping[str, str]) -> Settled:
    """Checks and completes the flags. Raises `LauncherError`; needs neither the model nor the network."""
    _refuse_what_is_not_served(arguments)
    settled = _settle_limits(_on_clouds_port(arguments, environment), machine)
    _check_ranges(settled)
    hostname, notices = _settle_hostname(settled.hostname)
    settled = replace(settled, hostname=hostname)
    num_shard = count_shards(settled, machine)
    return Settled(settled, num_shard, _compute_type(environment, machine, num_shard), tuple(notices))


def launch_plan(
    settled: Settled, programs: Programs, model_path: Path | None, uds_prefix: str, environment: Mapping[str, str]
) -> LaunchPlan:
    """The commands of all children; the port is not 0 by now."""
    arguments = settled.arguments
    shared = inherited(environment)
    router_environment = dict(shared)
    if arguments.api_key is not None:
        router_environment["API_KEY"] = arguments.api_key
    if settled.compute_type is not None:
        router_environment["COMPUTE_TYPE"] = settled.compute_type
    model = {"--await-model": True} if model_path is None else {"--model-path": str(model_path)}
    places = model | {"--worker-uds-path": uds_prefix, "--num-shard": settled.num_shard}
    router_argv = (*programs.router, *_pairs({"--model-id": arguments.model_id} | places))
    return LaunchPlan(
        model_id=arguments.model_id,
        num_shard=settled.num_shard,
        router=Command((*router_argv, *_passed_on(arguments, Target.ROUTER)), router_environment),
        worker_argv=(
            *programs.worker,
            *_pairs({"--model-path": str(model_path), "--uds-path": uds_prefix}),
            *_passed_on(arguments, Target.WORKER),
        ),
        worker_environment=shared,
        master_addr=arguments.master_addr,
        master_port=arguments.master_port,
        health_host=_health_host(arguments.hostname),
        hostname=arguments.hostname,
        port=arguments.port,
        termination_timeout=float(arguments.graceful_termination_timeout + arguments.lame_duck_seconds),
        longest_restart_wait=float(arguments.max_restart_wait_seconds),
        dump_folder=Path(arguments.dump_folder or tempfile.gettempdir()),
        model_path=model_path,
        revision=arguments.revision,
    )


def count_shards(arguments: Arguments, machine: Machine) -> int:
    """How many ranks: the original's rule, and never more than there are GPUs when there are any."""
    num_shard = arguments.num_shard
    if arguments.sharded and num_shard is None:
        num_shard = _all_devices(machine)
    elif arguments.sharded and num_shard is not None and num_shard <= 1:
        raise argument_error(f"`--sharded` is true but `--num-shard` is {num_shard}; give at least 2 or neither")
    elif num_shard is None:
        num_shard = 1 if arguments.sharded is False else machine.visible or 1
    if num_shard < 1:
        raise argument_error("`--num-shard` must be at least 1")
    if 0 < machine.usable < num_shard:
        raise LauncherError(
            Variant.NOT_ENOUGH_DEVICES,
            f"`--num-shard` is {num_shard} but {machine.usable} GPU(s) can be used; lower it, or hide the GPUs with "
            "CUDA_VISIBLE_DEVICES= to run on the CPU",
        )
    return num_shard


def _all_devices(machine: Machine) -> int:
    devices = machine.present or None if machine.visible is None else machine.visible
    if devices is None:
        raise LauncherError(
            Variant.NOT_ENOUGH_DEVICES,
            "`--sharded` is true but the number of devices is not known: give `--num-shard` or CUDA_VISIBLE_DEVICES",
            exit_code=PANIC_EXIT_CODE,
        )
    if devices <= 1:
        raise LauncherError(Variant.NOT_ENOUGH_DEVICES, f"`--sharded` is true but only {devices} device(s) can be seen")
    return devices


def _refuse_what_is_not_served(arguments: Arguments) -> None:
    for row in FLAG_TABLE:
        value = getattr(arguments, row.name)
        asked_for = value != row.default and value not in row.flag.harmless
        if row.flag.status is Status.REFUSED and asked_for:
            raise argument_error(f"`{row.long}` (or {row.environment}) is refused: {row.flag.note}")
        if value in row.flag.refused:
            raise argument_error(f"`{row.long} {value}` (or {row.environment}) is refused: {row.flag.note}")


def _settle_limits(arguments: Arguments, machine: Machine) -> Arguments:
    """The old name of --max-input-tokens, and the default of --max-batch-prefill-tokens."""
    if arguments.max_input_tokens is not None and arguments.max_input_length is not None:
        raise argument_error("`--max-input-tokens` and `--max-input-length` are one limit: give only the first")
    max_input_tokens = arguments.max_input_length if arguments.max_input_tokens is None else arguments.max_input_tokens
    step_tokens = arguments.max_batch_prefill_tokens
    if step_tokens is None:
        default = DEFAULT_STEP_TOKENS if machine.usable else DEFAULT_STEP_TOKENS_ON_CPUS
        step_tokens = min(default, arguments.max_batch_total_tokens or default)
    return replace(arguments, max_input_tokens=max_input_tokens, max_batch_prefill_tokens=step_tokens)


def _check_ranges(arguments: Arguments) -> None:
    _check_positive(arguments)
    most_input, most_total = arguments.max_input_tokens, arguments.max_total_tokens
    if most_input is not None and most_total is not None and most_input >= most_total:
        raise argument_error(
            f"`--max-input-tokens` ({most_input}) must be less than `--max-total-tokens` ({most_total})"
        )
    pool = arguments.max_batch_total_tokens
    step_tokens = arguments.max_batch_prefill_tokens
    if pool is not None and step_tokens is not None and step_tokens > pool:
        raise argument_error(
            f"`--max-batch-prefill-tokens` ({step_tokens}) must not exceed `--max-batch-total-tokens` ({pool})"
        )
    if pool is not None and most_total is not None and most_total > pool:
        raise argument_error(f"`--max-total-tokens` ({most_total}) must not exceed `--max-batch-total-tokens` ({pool})")
    if not 0 < arguments.cuda_memory_fraction <= 1:
        raise argument_error(f"`--cuda-memory-fraction` ({arguments.cuda_memory_fraction}) must be in (0, 1]")
    if not 0 < arguments.watermark_gamma < 1:
        raise argument_error(f"`--watermark-gamma` ({arguments.watermark_gamma}) must be between 0 and 1")
    if arguments.waiting_served_ratio < 0:
        raise argument_error(f"`--waiting-served-ratio` ({arguments.waiting_served_ratio}) must not be negative")


_POSITIVE = (
    "validation_workers",
    "max_batch_size",
    "max_input_tokens",
    "max_total_tokens",
    "max_batch_prefill_tokens",
    "max_batch_total_tokens",
    "max_concurrent_requests",
    "max_client_batch_size",
    "kv_cache_memory",
)


def _check_positive(arguments: Arguments) -> None:
    for name in _POSITIVE:
        if getattr(arguments, name) == 0:
            raise argument_error(f"`--{name.replace('_', '-')}` must be at least 1")


def _settle_hostname(hostname: str) -> tuple[str, list[str]]:
    """An address. Containers set HOSTNAME to their own name, so a name means all addresses, as in the original."""
    if hostname == "localhost":
        return "127.0.0.1", []
    try:
        return str(ipaddress.ip_address(hostname.strip("[]"))), []
    except ValueError:
        return "0.0.0.0", [f"The hostname '{hostname}' is not an IP address: listening on 0.0.0.0"]


def _health_host(hostname: str) -> str:
    address = ipaddress.ip_address(hostname)
    if not address.is_unspecified:
        return hostname
    return "127.0.0.1" if address.version == 4 else "::1"


def _on_clouds_port(arguments: Arguments, environment: Mapping[str, str]) -> Arguments:
    """Vertex AI tells its containers the port to listen on by AIP_HTTP_PORT; it wins, as in the original."""
    port = environment.get("AIP_HTTP_PORT")
    if not port:
        return arguments
    if not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise argument_error(f"AIP_HTTP_PORT is {port!r}, which is no port; it must be a number from 1 to 65535")
    return replace(arguments, port=int(port))


def _compute_type(environment: Mapping[str, str], machine: Machine, num_shard: int) -> str | None:
    """What `x-compute-type` will say; None leaves it to the router."""
    if environment.get("COMPUTE_TYPE"):
        return environment["COMPUTE_TYPE"]
    if machine.card is None or machine.usable == 0:
        return None
    return f"{num_shard}-{machine.card.lower().replace(' ', '-')}"


def inherited(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of every child: without secrets, and without the flags' variables, which argv replaces."""
    ours = {row.environment for row in FLAG_TABLE} | set(SECRET_ENVIRONMENT)
    kept = {name: value for name, value in environment.items() if name not in ours}
    return {**kept, "MILLRACE_LIFELINE": "stdin"}


def _passed_on(arguments: Arguments, target: Target) -> tuple[str, ...]:
    words: dict[str, Any] = {}
    for row in FLAG_TABLE:
        if target in row.flag.targets:
            value = getattr(arguments, row.name)
            spelled_out = isinstance(value, bool) and row.flag.kind.takes_value
            words[row.long] = str(value).lower() if spelled_out else value
    return _pairs(words)


def _pairs(flags: Mapping[str, Any]) -> tuple[str, ...]:
    """`--flag=value` words (the joined form also carries values that begin with a dash); True is a bare switch."""
    words: list[str] = []
    for name, value in flags.items():
        if isinstance(value, tuple):
            words += [f"{name}={item}" for item in value]
        elif value is True:
            words.append(name)
        elif value is not None and value is not False:
            words.append(f"{name}={value}")
    return tuple(words)
