"""The commands and their flags; what they do is in modules of their own, imported when needed."""

# No ``from __future__ import annotations``: typer evaluates these annotations.
import os
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from aegaeon import __version__
from aegaeon.cli.terminal.flags import with_pool_flags
from aegaeon.settings.options import CONFIG_VARIABLE, MODELS_VARIABLE

# Without Rich's markup the help is there in a third of the time.
app = typer.Typer(
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Aegaeon: many models share few devices by switching between tokens.",
)
_FORWARD = {
    "add_help_option": False,
    "context_settings": {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
}


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"aegaeon {__version__}")
        raise typer.Exit()


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
@with_pool_flags
def serve(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME=DIR]...",
            help=f"Models to serve: the name that clients use, and the folder  [{MODELS_VARIABLE}, comma separated]",
            show_default=False,
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", metavar="FILE", help=f"YAML file with models and values  [{CONFIG_VARIABLE}]"),
    ] = None,
    **flags: str | bool | list[str] | None,
) -> None:
    """Serve models over the OpenAI API.

    A flag goes before its variable, the variable before the file, the file before the default.
    """
    from aegaeon.cli.serve import serve as run

    raise typer.Exit(run(models or [], config, flags, os.environ))


@app.command("make-model")
def make_model(
    architecture: Annotated[
        str, typer.Argument(metavar="ARCH", help="A model type of Transformers, such as llama, qwen3 or mixtral")
    ],
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The folder to write; must be empty or absent")],
    hidden_size: Annotated[int, typer.Option(help="width of the model")] = 128,
    layers: Annotated[int, typer.Option(help="number of layers")] = 2,
    heads: Annotated[int, typer.Option(help="attention heads")] = 4,
    kv_heads: Annotated[int | None, typer.Option(help="key and value heads  [default: half of the heads]")] = None,
    intermediate_size: Annotated[
        int | None, typer.Option(help="width of the feed-forward layers  [default: thrice the hidden size]")
    ] = None,
    vocab_size: Annotated[int, typer.Option(help="tokens of the vocabulary")] = 1024,
    max_context: Annotated[int, typer.Option(help="longest context in tokens")] = 2048,
    dtype: Annotated[str, typer.Option(help="type of the weights: bfloat16, float16 or float32")] = "bfloat16",
    seed: Annotated[int, typer.Option(help="seed of the random weights")] = 0,
    learn: Annotated[Path | None, typer.Option(metavar="FILE", help="short text to learn by heart")] = None,
    steps: Annotated[int, typer.Option(help="most steps of learning")] = 150,
) -> None:
    """Make a small random model with a tokenizer and a chat template, for demos and tests; no network."""
    from aegaeon.cli.make_model import make

    sizes = {
        "hidden_size": hidden_size,
        "layers": layers,
        "heads": heads,
        "kv_heads": kv_heads,
        "intermediate_size": intermediate_size,
        "vocab_size": vocab_size,
        "max_context": max_context,
    }
    make(architecture, directory, sizes, dtype, seed, learn, steps)


@app.command()
def doctor() -> None:
    """Say what this machine has for serving, what is missing, and what to do about it."""
    from aegaeon.cli.doctor import examine, show

    findings = examine()
    show(findings)
    raise typer.Exit(int(any(finding.broken for finding in findings)))


class _ProfileGroup(TyperGroup):
    """``aegaeon profile DIR...`` is ``aegaeon profile run DIR...``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        named = bool(args) and args[0] in {*self.commands, *ctx.help_option_names}
        return super().parse_args(ctx, args if named else ["run", *args])


profile = typer.Typer(cls=_ProfileGroup, rich_markup_mode=None, help="Latency profiles: measure, fit, estimate, check.")
app.add_typer(profile, name="profile")


@profile.command("run")
def profile_run(
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME=]DIR...", help="Models to measure: their folders", show_default=False),
    ] = None,
    device: Annotated[
        str, typer.Option(help="where models run: cpu, cuda, or auto: on the first GPU where there is one")
    ] = "auto",
    threads: Annotated[
        int | None, typer.Option(help="compute threads of an instance  [default: as in a pool of this machine]")
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="folder of the profiles")] = Path("profiles"),
    quick: Annotated[bool, typer.Option("--quick", help="fewer points and rounds: a minute for a small model")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="measure all anew, do not go on with what is there")] = False,
    max_error: Annotated[float, typer.Option(help="mean relative error above which no profile is written")] = 0.10,
    max_context: Annotated[int, typer.Option(help="longest prompt and context to measure, in tokens")] = 4096,
    prefill_chunk_tokens: Annotated[int, typer.Option(help="as of aegaeon serve")] = 512,
    max_batch_requests: Annotated[int, typer.Option(help="as of aegaeon serve")] = 64,
) -> None:
    """Measure how long models take on this machine, and write latency profiles for serving and simulating.

    What is measured is kept beside the profiles: a run that was broken off is gone on with.
    """
    from aegaeon.cli.profile import ProfileOptions
    from aegaeon.cli.profile import profile as run

    options = ProfileOptions(
        models or [],
        device,
        threads,
        out,
        quick,
        fresh,
        max_error,
        max_context,
        prefill_chunk_tokens,
        max_batch_requests,
    )
    raise typer.Exit(run(options))


@profile.command("fit", **_FORWARD)  # type: ignore[arg-type]
def profile_fit(context: typer.Context) -> None:
    """Fit profiles to measurements; --help says more."""
    _latency("fit", context)


@profile.command("estimate", **_FORWARD)  # type: ignore[arg-type]
def profile_estimate(context: typer.Context) -> None:
    """Estimate a profile from a model's config.json; --help says more."""
    _latency("estimate", context)


@profile.command("check", **_FORWARD)  # type: ignore[arg-type]
def profile_check(context: typer.Context) -> None:
    """Calibrate estimates on measurements, and test them on those left out; --help says more."""
    _latency("check", context)


def _latency(command: str, context: typer.Context) -> NoReturn:
    from aegaeon.latency.__main__ import main

    raise typer.Exit(main([command, *context.args], program="aegaeon profile"))


@app.command(**_FORWARD)  # type: ignore[arg-type]
def workload(context: typer.Context) -> None:
    """Write workload files; every argument goes on to aegaeon/workload.py."""
    from aegaeon.workload import main

    raise typer.Exit(main(context.args, program="aegaeon workload"))


@app.command(**_FORWARD)  # type: ignore[arg-type]
def bench(context: typer.Context) -> None:
    """Replay a workload against a pool; every argument goes on to benchmark/benchmark_e2e.py."""
    from aegaeon.cli.bench import benchmark_main

    raise typer.Exit(benchmark_main()(context.args))


@app.command(**_FORWARD)  # type: ignore[arg-type]
def simulate(context: typer.Context) -> None:
    """Simulate serving systems on a virtual pool; every argument goes on to sim/simulate.py."""
    from sim.simulate import main

    raise typer.Exit(main(context.args, program="aegaeon simulate"))
