"""The command line: what it prints, how it exits, what it imports."""

from __future__ import annotations

import dataclasses
import inspect
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import textwrap
import types
from pathlib import Path

import pytest

from aegaeon import __version__
from aegaeon.cli import doctor, main
from aegaeon.core.config import PoolConfig
from aegaeon.core.instance import Role
from aegaeon.core.service import (
    InstanceStarted,
    ListeningOn,
    ModelFound,
    ModelRefused,
    ProcessDied,
    Ready,
    ServiceDiedError,
    ServiceError,
    Stopping,
)
from aegaeon.settings.options import OPTIONS, OptionKind

URL = "http://127.0.0.1:8000"


@pytest.fixture
def model(tmp_path):
    """A folder that passes for a checkpoint."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    return folder


@pytest.fixture(autouse=True)
def untouched_process():
    """A command configures logging, sets variables for libraries and takes signals: undo it."""
    root = logging.getLogger()
    handlers, level, variables = root.handlers[:], root.level, dict(os.environ)
    previous = signal.getsignal(signal.SIGTERM)
    for name in [name for name in os.environ if name.startswith("AEGAEON_")]:
        del os.environ[name]
    yield
    for handler in set(root.handlers) - set(handlers):
        handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.getLogger("aegaeon").setLevel(logging.NOTSET)
    os.environ.clear()
    os.environ.update(variables)
    signal.signal(signal.SIGTERM, previous)


@pytest.fixture
def run(capsys):
    """Runs a command line in this process; gives exit code, standard output, standard error."""

    def command(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as exit_:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return exit_.value.code, captured.out, captured.err

    return command


@pytest.fixture
def service(monkeypatch):
    """Stands in for the runtime: reports what it is told to, then does ``ending``; remembers the configuration."""
    seen = types.SimpleNamespace(config=None, reports=[Ready(URL)], ending=lambda: None)

    def run_service(config: PoolConfig, sock, report, folder, logs) -> None:
        seen.config = config
        for item in seen.reports:
            report(item)
        seen.ending()

    monkeypatch.setattr("aegaeon.cli.serve.run_service", run_service)
    monkeypatch.setattr("aegaeon.cli.serve.listen", lambda config: socket.create_server(("127.0.0.1", 0)))
    return seen


def raising(error: BaseException):
    def action() -> None:
        raise error

    return action


class TestStart:
    def test_version(self, run):
        assert run("--version") == (0, f"aegaeon {__version__}\n", "")

    @pytest.mark.parametrize(
        "arguments",
        [["--version"], ["--help"], ["serve", "--help"], ["doctor", "--help"], ["make-model", "--help"]],
    )
    def test_help_imports_nothing_heavy(self, arguments):
        self._imports_none_of({"torch", "ray", "transformers", "fastapi", "numpy", "yaml", "rich"}, arguments)

    @pytest.mark.parametrize("command", ["simulate", "workload", "bench", "profile", "profile fit", "profile run"])
    def test_other_commands_import_neither_torch_nor_ray(self, command):
        self._imports_none_of({"torch", "ray", "transformers"}, [*command.split(), "--help"])

    def _imports_none_of(self, modules, arguments):
        program = textwrap.dedent(f"""
            import sys
            from aegaeon.cli import main
            try:
                main({arguments})
            except SystemExit as end:
                heavy = {modules} & set(sys.modules)
                sys.exit(f"{{end.code}}, {{heavy}}")
        """)
        result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        assert result.stderr == "0, set()\n"
        assert result.stdout

    def test_help_names_every_command_and_flag(self, run):
        code, text, _ = run("--help")
        assert code == 0
        assert all(command in text for command in ("serve", "make-model", "doctor", "workload", "bench"))
        _, text, _ = run("serve", "--help")
        assert all(option.flag in text for option in OPTIONS)

    def test_no_command_shows_the_help(self, run):
        code, out, err = run()
        assert code == 2
        assert "Usage" in out + err

    @pytest.mark.parametrize("arguments", [["srve"], ["serve", "--prot", "1"], ["make-model", "llama"]])
    def test_a_wrong_command_line_is_a_mistake(self, run, arguments):
        code, _, err = run(*arguments)
        assert code == 2
        assert "Usage" in err

    def test_a_close_flag_is_suggested(self, run):
        assert "--port" in run("serve", "--prot", "1")[2]


class TestServe:
    def test_settings_reach_the_service(self, run, service, model, monkeypatch):
        monkeypatch.setenv("AEGAEON_NODES", "3")
        code, *_ = run("serve", f"a={model}", "--port", 0, "--copy-to-device", "--instances", "prefill=1,decode=2")
        assert code == 0
        config = service.config
        assert [served.name for served in config.models] == ["a"]
        assert (config.port, config.nodes, config.copy_to_device) == (0, 3, True)
        assert [(instance.role, instance.count) for instance in config.instances] == [
            (Role.PREFILL, 1),
            (Role.DECODE, 2),
        ]
        assert None not in (config.weight_cache_bytes, config.kv_cache_bytes, config.threads_per_instance)

    def test_every_flag_is_accepted(self, run, service, model, tmp_path):
        by_key = {"chat_template": "{{ x }}", "slab_size": "1MiB", "profile_dir": tmp_path, "cors_origins": "*"}
        by_kind = {
            OptionKind.BYTES: "64MiB",
            OptionKind.FOLDER: f"{tmp_path / 'kv'},64MiB",
            OptionKind.INSTANCES: "2",
            OptionKind.INTEGER: "7",
            OptionKind.PATH: tmp_path / "f",
            OptionKind.SECONDS: "2",
            OptionKind.TEXT: "127.0.0.1",
            OptionKind.TEXTS: "x",
        }
        arguments: list[object] = []
        for option in OPTIONS:
            value = option.choices[0] if option.choices else by_key.get(option.key, by_kind.get(option.kind))
            arguments += [option.flag] if value is None else [option.flag, value]
        code, _, err = run("serve", f"a={model}", *arguments)
        assert (code, "rror" in err) == (0, False)
        assert service.config.max_batch_requests == 7
        assert service.config.models[0].slo.ttft_s == 2

    @pytest.mark.parametrize("origin", ["localhost:3000", "http://localhost/", "http://a.example,b.example"])
    def test_what_no_browser_has_as_an_origin_is_told(self, run, service, model, origin):
        code, _, err = run("serve", f"a={model}", "--cors-origin", origin)
        assert code == 2
        assert "--cors-origin" in err
        assert "must be an origin such as http://localhost:3000" in err

    def test_a_flag_of_several_values_may_be_repeated(self, run, service, model):
        origins = ("http://a.example", "http://b.example", "http://c.example")
        flags = ("--cors-origin", "http://a.example", "--cors-origin", "http://b.example, http://c.example")
        assert run("serve", f"a={model}", *flags, "--api-keys", "one,two")[0] == 0
        assert service.config.cors_origins == origins
        assert service.config.api_keys == ("one", "two")
        assert service.config.metrics_keys == ()

    def test_a_file(self, run, service, model, tmp_path):
        (tmp_path / "pool.yaml").write_text("models: {a: model}\nport: 17")
        assert run("serve", "--config", tmp_path / "pool.yaml", "--nodes", 2)[0] == 0
        assert (service.config.port, service.config.nodes) == (17, 2)

    def test_the_ready_line_is_alone_on_standard_output(self, run, service, model):
        found = ModelFound("a", "LlamaForCausalLM", 7_615_616_512, 3 << 30, "bfloat16", 57344, 131072, "tied weights")
        service.reports = [
            ListeningOn(URL),
            found,
            ModelRefused("b", Path("/models/b"), "falcon does not use the attention interface [yet]"),
            InstanceStarted("node0-mixed0", Role.MIXED, 4711, "cpu", 2),
            Ready(URL),
            Ready(URL),
            Stopping(),
        ]
        code, out, err = run("serve", f"a={model}")
        assert (code, out) == (0, f"ready {URL}\n")
        row = next(line for line in err.splitlines() if "LlamaForCausalLM" in line)
        assert [cell.strip() for cell in row.split("  ") if cell.strip()] == [
            "a", "LlamaForCausalLM", "7.62B", "3 GiB", "bfloat16", "56 KiB", "131,072", "tied weights",
        ]  # fmt: skip
        assert f"listening on {URL}" in err
        assert "not served: b (/models/b): falcon does not use the attention interface [yet]" in err
        assert "instance node0-mixed0: mixed, cpu, 2 threads, process 4711" in err
        assert "stopping\n" in err

    def test_a_service_that_was_stopped_in_order(self, run, service, model):
        assert run("serve", f"a={model}") == (0, f"ready {URL}\n", "")

    def test_a_service_that_was_cut_short(self, run, service, model):
        service.ending = raising(KeyboardInterrupt())
        assert run("serve", f"a={model}") == (130, f"ready {URL}\n", "")

    def test_ctrl_c_before_ready(self, run, service, model):
        service.reports, service.ending = [], raising(KeyboardInterrupt())
        assert run("serve", f"a={model}") == (130, "", "")

    def test_a_service_that_was_stopped_before_it_was_ready(self, run, service, model):
        service.reports = [ListeningOn(URL), Stopping()]
        assert run("serve", f"a={model}")[0] == 130

    def test_sigterm_is_like_ctrl_c_where_nobody_takes_it(self, run, service, model):
        service.ending = lambda: signal.raise_signal(signal.SIGTERM)
        assert run("serve", f"a={model}")[:2] == (130, f"ready {URL}\n")

    def test_a_service_that_gave_up(self, run, service, model):
        service.ending = raising(ServiceDiedError("the pool process died 7 times in a row"))
        code, _, err = run("serve", f"a={model}")
        assert code == 3
        assert "aegaeon: the pool process died 7 times in a row\n" in err

    def test_a_process_that_died_and_came_back_is_told(self, run, service, model):
        service.reports = [Ready(URL), ProcessDied("server", "it was killed by SIGKILL", 0.5), Ready(URL)]
        code, out, err = run("serve", f"a={model}")
        assert (code, out) == (0, f"ready {URL}\n")
        assert "the server process died: it was killed by SIGKILL; another starts in 0.5 s" in err
        assert f"ready again at {URL}" in err

    def test_our_log_goes_to_the_log_file(self, run, service, model, tmp_path):
        def work() -> None:
            logging.getLogger("aegaeon.runtime").info("a step")
            logging.getLogger("ray").info("chatter")

        service.ending = work
        _, _, err = run("serve", f"a={model}", "--log-file", tmp_path / "pool.log")
        text = (tmp_path / "pool.log").read_text()
        assert "INFO aegaeon.runtime: a step" in text
        assert "chatter" not in text
        assert "a step" not in err


class TestMistakes:
    """A message that says what to do, exit code 2, no traceback."""

    @pytest.mark.parametrize(
        ("arguments", "part"),
        [
            ([], "no model to serve"),
            (["nonsense"], "must be NAME=DIR"),
            (["a=/no/such/folder"], "/no/such/folder does not exist"),
            (["--config", "/no/such.yaml"], "/no/such.yaml: cannot be read"),
            (["a={model}", "--port", "70000"], "--port: must be less than or equal to 65535"),
            (["a={model}", "--kv-cache", "64GiBB"], "--kv-cache: must be a size"),
            (["a={model}", "--kv-cache", "900TiB"], "too little shared memory: "),
            (["a={model}", "--log-file", "/no/such/folder/x.log"], "--log-file: cannot write to"),
        ],
    )
    def test_serve(self, run, service, model, arguments, part):
        code, out, err = run("serve", *(argument.format(model=model) for argument in arguments))
        assert (code, out) == (2, "")
        assert part in err
        assert "Traceback" not in err
        assert service.config is None

    def test_a_service_that_cannot_start(self, run, service, model):
        service.reports, service.ending = [], raising(ServiceError("port 8000 is in use: choose another with --port"))
        code, _, err = run("serve", f"a={model}")
        assert (code, err) == (2, "aegaeon: port 8000 is in use: choose another with --port\n")


class TestBugs:
    @pytest.fixture(autouse=True)
    def _crash_files_here(self, tmp_path, monkeypatch):
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def test_a_short_message_and_the_traceback_in_a_file(self, run, service, model, tmp_path):
        service.ending = raising(ZeroDivisionError("oh"))
        code, _, err = run("serve", f"a={model}")
        [crash] = tmp_path.glob("aegaeon-crash-*.log")
        assert code == 1
        assert "unexpected ZeroDivisionError: oh" in err
        assert str(crash) in err
        assert "Traceback" not in err
        assert "Traceback" in crash.read_text()

    def test_the_traceback_is_in_the_log_file_if_there_is_one(self, run, service, model, tmp_path):
        service.ending = raising(ZeroDivisionError("oh"))
        code, _, err = run("serve", f"a={model}", "--log-file", tmp_path / "pool.log")
        assert code == 1
        assert str(tmp_path / "pool.log") in err
        assert "ZeroDivisionError: oh" in (tmp_path / "pool.log").read_text()
        assert not list(tmp_path.glob("aegaeon-crash-*.log"))

    def test_debugging_shows_the_traceback(self, run, service, model, monkeypatch):
        monkeypatch.setenv("AEGAEON_DEBUG", "1")
        service.ending = raising(ZeroDivisionError("oh"))
        code, _, err = run("serve", f"a={model}")
        assert code == 1
        assert "Traceback" in err


class TestDoctor:
    def test_it_looks_at_everything(self, run):
        code, out, _ = run("doctor")
        names = ("Python", "torch", "ray", "loader", "cores", "memory", "shared memory", "service folder", "GPU")
        assert all(name in out for name in names)
        assert code == int("broken" in out)

    def test_what_is_missing_is_advised(self, run, monkeypatch):
        monkeypatch.setitem(sys.modules, "quick_model_loader", None)
        code, out, _ = run("doctor")
        assert code == 1
        assert "not built" in out
        assert "pip install" in out

    def test_folders_that_are_not_there(self, monkeypatch):
        monkeypatch.setattr("aegaeon.runtime.process.run_folder.places", lambda _: [])
        monkeypatch.setenv("HOME", "")
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        findings = {finding.name: finding for finding in doctor.examine()}
        assert findings["service folder"].broken
        assert "TMPDIR" in findings["service folder"].advice
        assert not findings["cache folder"].broken
        assert "--cache-dir" in findings["cache folder"].advice

    def test_shared_memory_that_is_forbidden(self, monkeypatch):
        def deny(name: str) -> int:
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr(os, "memfd_create", deny)
        [finding] = [finding for finding in doctor.examine() if finding.name == "shared memory"]
        assert finding.broken
        assert "memfd_create" in finding.advice


class TestMakeModel:
    def test_defaults_are_those_of_the_module(self):
        from aegaeon.cli.app import make_model as command
        from aegaeon.toy_models import make_model as module
        from aegaeon.toy_models.model_request import ModelSizes

        flags = {name: item.default for name, item in inspect.signature(command).parameters.items()}
        sizes = {field.name: field.default for field in dataclasses.fields(ModelSizes)}
        options = inspect.signature(module.make_model).parameters
        assert {name: flags[name] for name in sizes} == sizes
        assert all(flags[name] == options[name].default for name in ("dtype", "seed", "learn", "steps"))

    def test_a_model_is_made(self, run, tmp_path):
        folder = tmp_path / "tiny"
        code, out, _ = run("make-model", "llama", folder, "--hidden-size", 16, "--layers", 1, "--vocab-size", 300)
        assert code == 0
        assert "LlamaForCausalLM" in out
        assert f"aegaeon serve tiny={folder}" in out
        config = json.loads((folder / "config.json").read_text())
        assert (config["hidden_size"], config["num_hidden_layers"], config["vocab_size"]) == (16, 1, 300)
        assert (folder / "model.safetensors").exists()

    def test_a_model_learns(self, run, tmp_path):
        small = ("--hidden-size", 16, "--layers", 1, "--vocab-size", 300, "--max-context", 128)
        (tmp_path / "voice.txt").write_text("I am the tiny one.")
        code, out, _ = run(
            "make-model", "llama", tmp_path / "m", "--learn", tmp_path / "voice.txt", "--steps", 1, *small
        )
        assert code == 0
        assert "it knows the text after" in out
        assert "--steps" in out

    @pytest.mark.parametrize(
        ("arguments", "part"),
        [
            (["lama", "x"], "did you mean llama"),
            (["llama", "x", "--hidden-size", "0"], "hidden_size must be at least 1"),
            (["llama", "x", "--dtype", "int3"], "unknown dtype"),
            (["llama", "x", "--learn", "/no/such/file"], "cannot read /no/such/file"),
            (["llama", "/"], "not empty"),
        ],
    )
    def test_mistakes(self, run, tmp_path, monkeypatch, arguments, part):
        monkeypatch.chdir(tmp_path)
        code, out, err = run("make-model", *arguments)
        assert (code, out) == (2, "")
        assert part in err
        assert "Traceback" not in err
        assert not list(tmp_path.iterdir())


class TestForwards:
    def test_workload(self, run, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        code, *_ = run("workload", "--num-models", 2, "--arrival-rate", "0.5", "--duration", 20)
        assert code == 0
        assert [file.name for file in tmp_path.rglob("*.csv")] == ["synth-2-0.5-1.0-1.0.csv"]

    def test_help_of_a_forward_is_that_of_the_program(self, run):
        code, out, _ = run("workload", "--help")
        assert code == 0
        assert "--arrival-rate" in out

    def test_bench_is_the_benchmark(self, run):
        code, out, _ = run("bench", "--help")
        assert code == 0
        assert "--base-url" in out
