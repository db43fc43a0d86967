"""Settings: where values come from, what is refused, and that flags, variables and documentation agree."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegaeon.core.config import InstanceConfig, KvDiskConfig, ModelConfig, PoolConfig
from aegaeon.core.instance import Role
from aegaeon.core.slo import Slo
from aegaeon.scheduler.policies.registry import POLICIES
from aegaeon.settings.error import SettingsError
from aegaeon.settings.load import load_settings
from aegaeon.settings.machine import Machine
from aegaeon.settings.options import OPTIONS, OptionKind, Scope
from aegaeon.settings.reference import replace_reference
from aegaeon.settings.schema import validate
from aegaeon.settings.sizes import format_bytes, format_count, parse_bytes
from aegaeon.settings.sources import read_sources

GIB = 1 << 30
MACHINE = Machine(cores=2, available_bytes=16 * GIB)
ROOT = Path(__file__).parents[2]


def make_checkpoint(folder: Path, weight_bytes: int = 1000) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    write_weights(folder / "model.safetensors", weight_bytes)
    return folder


def write_weights(file: Path, weight_bytes: int) -> None:
    """One bfloat16 tensor of so many bytes."""
    header = json.dumps({"x": {"dtype": "BF16", "shape": [weight_bytes // 2], "data_offsets": [0, weight_bytes]}})
    with file.open("wb") as stream:
        stream.write(len(header).to_bytes(8, "little") + header.encode())
        stream.truncate(8 + len(header) + weight_bytes)


@pytest.fixture
def pool(tmp_path):
    """Writes ``pool.yaml`` beside two checkpoints, ``a`` and ``b``, and loads it."""
    make_checkpoint(tmp_path / "a")
    make_checkpoint(tmp_path / "b")

    def load(text: str, models=(), machine=MACHINE, environment=None, **flags) -> PoolConfig:
        (tmp_path / "pool.yaml").write_text(text)
        return load_settings(models, tmp_path / "pool.yaml", flags, environment, machine)

    return load


@pytest.fixture
def refused(pool):
    """The message that a file is refused with."""

    def message(text: str, **kwargs) -> str:
        with pytest.raises(SettingsError) as caught:
            pool(text, **kwargs)
        return str(caught.value)

    return message


class TestValues:
    def test_the_least_file_serves_a_model_with_every_default(self, pool, tmp_path):
        config = pool("models: {a: {path: a}}")
        assert config.models == (ModelConfig("a", tmp_path / "a"),)
        assert (config.host, config.port, config.policy) == ("127.0.0.1", 8000, "slack")

    def test_a_model_may_be_just_its_folder(self, pool, tmp_path):
        assert pool("models: {a: a, b: ./b}").models[1] == ModelConfig("b", tmp_path / "b")

    def test_an_absolute_path_stays_as_it_is(self, pool, tmp_path):
        assert pool(f"models: {{a: {tmp_path / 'b'}}}").models[0].path == tmp_path / "b"

    def test_every_key_reaches_its_field(self, pool, tmp_path):
        config = pool(
            """
            models: {a: {path: a, slo: {ttft_s: 1, tpot_s: 0.5}, max_context_tokens: 99, dtype: float32,
                         chat_template: "{{ messages }}"}}
            host: 0.0.0.0
            port: 0
            policy: aegaeon
            device: cpu
            instances: {prefill: 1, decode: 2}
            threads_per_instance: 3
            resident_models: 4
            copy_to_device: true
            device_memory: 64MiB
            page_size: 4MiB
            weight_cache: 1GiB
            kv_cache: 512MiB
            slab_size: 8MiB
            block_tokens: 32
            prefill_chunk_tokens: 128
            max_batch_requests: 5
            max_queued_requests: 6
            ray_address: auto
            nodes: 2
            event_log: events.jsonl
            log_file: /tmp/aegaeon-test.log
            api_keys: [k1, k2]
            metrics_keys: [m1]
            cors_origins: ["http://localhost:3000", "https://chat.example"]
            max_connections: 7
            max_header: 8KiB
            max_body: 1MiB
            max_stop_strings: 8
            max_stop_chars: 9
            request_timeout: 10
            keep_alive: 11
            send_timeout: 12
            instance_timeout: 13
            standby_driver: true
            grace: 14
            cache_dir: /tmp/aegaeon-test-cache
            """
        )
        assert config == PoolConfig(
            models=(ModelConfig("a", tmp_path / "a", Slo(1.0, 0.5), 99, "float32", "{{ messages }}"),),
            host="0.0.0.0",
            port=0,
            policy="aegaeon",
            device="cpu",
            instances=(InstanceConfig(Role.PREFILL, 1), InstanceConfig(Role.DECODE, 2)),
            threads_per_instance=3,
            resident_models=4,
            copy_to_device=True,
            device_bytes=64 << 20,
            page_bytes=4 << 20,
            weight_cache_bytes=GIB,
            kv_cache_bytes=512 << 20,
            slab_bytes=8 << 20,
            block_tokens=32,
            prefill_chunk_tokens=128,
            max_batch_requests=5,
            max_queued_requests=6,
            ray_address="auto",
            nodes=2,
            event_log=tmp_path / "events.jsonl",
            log_file=Path("/tmp/aegaeon-test.log"),
            api_keys=("k1", "k2"),
            metrics_keys=("m1",),
            cors_origins=("http://localhost:3000", "https://chat.example"),
            max_connections=7,
            max_header_bytes=8192,
            max_body_bytes=1 << 20,
            max_stop_strings=8,
            max_stop_chars=9,
            request_timeout_s=10.0,
            keep_alive_s=11.0,
            send_timeout_s=12.0,
            instance_timeout_s=13.0,
            standby_driver=True,
            grace_s=14.0,
            cache_dir=Path("/tmp/aegaeon-test-cache"),
        )

    @pytest.mark.parametrize(
        ("written", "roles"),
        [
            ("3", {Role.MIXED: 3}),
            ("{mixed: 1, prefill: 2}", {Role.MIXED: 1, Role.PREFILL: 2}),
            ("{decode: 1, prefill: 2, mixed: 0}", {Role.DECODE: 1, Role.PREFILL: 2}),
        ],
    )
    def test_instances(self, pool, written, roles):
        config = pool(f"models: {{a: a}}\ninstances: {written}")
        assert {instance.role: instance.count for instance in config.instances} == roles

    def test_models_without_their_own_values_get_those_of_the_pool(self, pool):
        config = pool(
            "models: {a: a, b: {path: b, slo: {ttft_s: 3}, dtype: float16}}\nslo: {tpot_s: 0.2}\ndtype: float32"
        )
        assert [model.slo for model in config.models] == [Slo(tpot_s=0.2), Slo(3.0, 0.2)]
        assert [model.dtype for model in config.models] == ["float32", "float16"]

    def test_a_chat_template_may_be_a_file_beside_the_yaml(self, pool, tmp_path):
        (tmp_path / "chat.jinja").write_text("{{ messages[0].content }}")
        assert pool("models: {a: {path: a, chat_template: chat.jinja}}").models[0].chat_template.startswith("{{")

    def test_anchors_and_merges_share_values(self, pool):
        config = pool("models:\n  a: &base {path: a, dtype: float32}\n  b: {<<: *base, path: b}")
        assert [(model.path.name, model.dtype) for model in config.models] == [("a", "float32"), ("b", "float32")]

    def test_a_key_without_a_value_is_not_given(self, pool):
        assert pool("models: {a: {path: a, dtype: }}\nport:").port == 8000


class TestPrecedence:
    FILE = "models: {a: a}\nport: 1\nslo: {ttft_s: 1}"

    def test_the_file_beats_the_default(self, pool):
        assert pool(self.FILE).port == 1

    def test_the_environment_beats_the_file(self, pool):
        config = pool(self.FILE, environment={"AEGAEON_PORT": "2", "AEGAEON_TTFT_SLO": "5", "AEGAEON_TPOT_SLO": "0.3"})
        assert (config.port, config.models[0].slo) == (2, Slo(5.0, 0.3))

    def test_a_flag_beats_the_environment(self, pool):
        config = pool(self.FILE, environment={"AEGAEON_PORT": "2", "AEGAEON_TTFT_SLO": "5"}, port="3", ttft_slo="7")
        assert (config.port, config.models[0].slo.ttft_s) == (3, 7.0)

    def test_an_empty_variable_is_not_given(self, pool):
        assert pool(self.FILE, environment={"AEGAEON_PORT": ""}).port == 1

    def test_a_bad_value_that_is_overridden_does_no_harm(self, pool):
        assert pool("models: {a: a}\nport: many", port="3").port == 3

    @pytest.mark.parametrize(
        "option", [option for option in OPTIONS if option.kind is OptionKind.INTEGER], ids=lambda o: o.key
    )
    def test_every_number_can_be_a_flag_and_a_variable(self, pool, option):
        low, high = str(int(option.low)), str(int(option.low) + 1)

        def value(config: PoolConfig) -> object:
            return getattr(config.models[0] if option.scope is Scope.MODEL else config, option.config_field)

        config = pool("models: {a: a}", environment={option.variable: low, "AEGAEON_COPY_TO_DEVICE": "off"})
        assert value(config) == int(low)
        config = pool("models: {a: a}", environment={option.variable: low}, **{option.parameter: high})
        assert value(config) == int(high)

    def test_other_kinds_of_values_from_variables(self, pool, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path / "a")
        config = pool(
            "models: {a: a}",
            environment={
                "AEGAEON_COPY_TO_DEVICE": "true",
                "AEGAEON_KV_CACHE": "256MiB",
                "AEGAEON_INSTANCES": "prefill=1, decode=2",
                "AEGAEON_API_KEYS": "one, two",
                "AEGAEON_LOG_FILE": "pool.log",
            },
        )
        assert config.copy_to_device
        assert config.kv_cache_bytes == 256 << 20
        assert config.instances == (InstanceConfig(Role.PREFILL, 1), InstanceConfig(Role.DECODE, 2))
        assert config.api_keys == ("one", "two")
        assert config.log_file == tmp_path / "a" / "pool.log"

    @pytest.mark.parametrize("value", ["/kv", "/kv,", ",1GiB", "64GiB", "/kv,many", "/kv,1KiB", "/kv,1G", "[/kv]"])
    def test_a_folder_for_kv_has_a_size(self, pool, value):
        with pytest.raises(SettingsError, match=r"^--kv-disk: .*(must be|greater than)") as refused:
            pool("models: {a: a}", kv_disk=value)
        assert "\n" not in str(refused.value)

    def test_a_folder_for_kv_is_of_the_file_or_of_the_working_directory(self, pool, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path / "a")
        assert pool("models: {a: a}", kv_disk="k,v,1.5GiB").kv_disk == KvDiskConfig(tmp_path / "a" / "k,v", 3 << 29)
        assert pool("models: {a: a}\nkv_disk: kv,2MiB").kv_disk == KvDiskConfig(tmp_path / "kv", 2 << 20)
        assert pool("models: {a: a}").kv_disk is None

    def test_where_no_kv_is_kept_there_is_none_for_a_disk(self, pool):
        with pytest.raises(
            SettingsError, match=r"^--prefix-cache: with off no KV is kept, so there is none for kv_disk"
        ):
            pool("models: {a: a}", kv_disk="kv,1GiB", prefix_cache="off")

    def test_arguments_serve_without_a_file_from_the_working_directory(self, tmp_path, monkeypatch):
        make_checkpoint(tmp_path / "x")
        monkeypatch.chdir(tmp_path)
        config = load_settings(["one=x", f"two={tmp_path / 'x'}"], machine=MACHINE)
        assert [(model.name, model.path) for model in config.models] == [
            ("one", tmp_path / "x"),
            ("two", tmp_path / "x"),
        ]

    def test_arguments_join_the_models_of_the_file_and_replace_paths(self, pool, tmp_path):
        make_checkpoint(tmp_path / "c")
        config = pool(
            "models: {a: a, b: {path: b, dtype: float32}}", models=[f"b={tmp_path / 'c'}", f"c={tmp_path / 'c'}"]
        )
        assert [(model.name, model.path.name, model.dtype) for model in config.models] == [
            ("a", "a", None),
            ("b", "c", "float32"),
            ("c", "c", None),
        ]

    def test_models_and_file_from_the_environment(self, pool, tmp_path):
        pool("models: {a: a}")
        config = load_settings(
            environment={"AEGAEON_CONFIG": str(tmp_path / "pool.yaml"), "AEGAEON_MODELS": f"z={tmp_path / 'b'},"},
            machine=MACHINE,
        )
        assert [model.name for model in config.models] == ["a", "z"]


class TestRefusals:
    """Each message names file, line and key, and says what to do."""

    @pytest.mark.parametrize(
        ("text", "parts"),
        [
            ("models: {a: a}\nprot: 1", ["pool.yaml:2: prot: ", "did you mean 'port'"]),
            ("models: {a: a}\nkv_cache_bytes: 1", ["pool.yaml:2", "did you mean 'kv_cache'"]),
            ("models:\n  a:\n    path: a\n    dtpye: x", ["pool.yaml:4: models.a.dtpye", "did you mean 'dtype'"]),
            ("models: {a: {path: a, slo: {ttft: 1}}}", ["models.a.slo.ttft", "did you mean 'ttft_s'"]),
            ("slo: {xyz: 1}\nmodels: {a: a}", ["pool.yaml:1: slo.xyz", "known are ttft_s, tpot_s"]),
            ("models: {a: a}\nzzzzz: 1", ["zzzzz", "known are models, host, port"]),
            ("models:\n  a: a\n  b: b\n  a: b", ["pool.yaml:4: duplicate key 'a' in 'models' (first on line 2)"]),
            ("port: 1\nmodels: {a: a}\nport: 2", ["pool.yaml:3: duplicate key 'port' (first on line 1)"]),
            ("models: {a: a}\nport: 99999", ["pool.yaml:2: port", "65535", "got 99999"]),
            ("models: {a: a}\nport: true", ["port", "must be a number", "got True"]),
            ("models: {a: a}\nport: many", ["port", "must be a valid integer", "got 'many'"]),
            ("models: {a: a}\nkv_cache: 4G", ["kv_cache", "512MiB"]),
            ("models: {a: a}\nkv_cache: -1", ["kv_cache", "512MiB"]),
            ("models: {a: a}\nkv_cache: 9000000TiB", ["kv_cache", "less than or equal"]),
            ("models: {a: a}\npage_size: 100001", ["page_size", "multiple of 4096"]),
            ("models: {a: a}\nthreads_per_instance: 0", ["threads_per_instance", "greater than or equal to 1"]),
            ("models: {a: a}\nthreads_per_instance: 1000000", ["threads_per_instance", "less than or equal to 4096"]),
            ("models: {a: {path: a, slo: {ttft_s: -1}}}", ["models.a.slo.ttft_s", "greater than"]),
            ("models: {a: {path: a, slo: {tpot_s: 0.0009}}}", ["models.a.slo.tpot_s", "or equal to 0.001"]),
            ("models: {a: {path: a, slo: {ttft_s: 86401}}}", ["models.a.slo.ttft_s", "less than or equal to 86400"]),
            ("models: {a: {path: a, slo: {tpot_s: .nan}}}", ["models.a.slo.tpot_s"]),
            ("models: {a: {path: a, slo: {tpot_s: .inf}}}", ["models.a.slo.tpot_s"]),
            ("models: {a: {path: a, slo: 1}}", ["models.a.slo", "mapping"]),
            ("models: {a: {path: a, dtype: int3}}", ["models.a.dtype", "bfloat16", "got 'int3'"]),
            ("models: {a: {path: a, max_context_tokens: 1}}", ["models.a.max_context_tokens", "got 1"]),
            ("models: {a: a}\npolicy: magic", ["policy", "'aegaeon'", "got 'magic'"]),
            ("models: {a: a}\ndevice: tpu", ["device", "'cpu'"]),
            ("models: {a: {slo: {ttft_s: 1}}}", ["models.a.path", "is missing"]),
            ("models: {7: a}", ["models.7", "is not text; put it in quotes"]),
            ("models: {'a b': a}", ["models.a b", "is not a name"]),
            ("models: [a, b]", ["models", "mapping of names"]),
            ("models: {a: 5}", ["models.a", "mapping"]),
            ("models: {}", ["no model to serve", "NAME=DIR"]),
            ("", ["no model to serve"]),
            ("[]", ["pool.yaml:1", "must be a mapping"]),
            ("models: {a: a\nport: 1", ["pool.yaml:", "not valid YAML"]),
            ("models: {a: a}\nhost: 2024-99-99", ["not valid YAML"]),
            ("models: {a: a}\n? [x]\n: 1", ["pool.yaml:2", "not valid YAML"]),
            ("models: &m {a: *m}", ["pool.yaml:1", "not valid YAML", "recursive"]),
            ("models: {a: a}\ninstances: 0", ["instances", "at least one"]),
            ("models: {a: a}\ninstances: {prefill: 0}", ["instances", "at least one"]),
            (
                "models: {a: a}\ninstances: {prefill: 2}",
                ["pool.yaml:2: instances", "no instance can decode", "decode=1"],
            ),
            ("models: {a: a}\ninstances: {decode: 2}", ["instances", "no instance can prefill", "prefill=1"]),
            (
                "models: {a: a}\npolicy: sllm\ninstances: {prefill: 1, decode: 1}",
                ["pool.yaml:3: instances", "the policy sllm prefills and decodes on the same instance"],
            ),
            ("models: {a: a}\ninstances: -3", ["instances", "greater than or equal to 0"]),
            ("models: {a: a}\ninstances: {gpu: 1}", ["instances.gpu", "'prefill', 'decode' or 'mixed'"]),
            ("models: {a: a}\ninstances: 100000", ["instances", "1024"]),
            ("models: {a: {path: a, chat_template: none.jinja}}", ["models.a.chat_template", "none.jinja"]),
            ("models: {a: a}\nhost: ''", ["host", "at least 1 character"]),
        ],
    )
    def test_file(self, refused, text, parts):
        message = refused(text)
        assert all(part in message for part in parts), message
        assert "Traceback" not in message
        assert "pydantic" not in message

    def test_all_problems_are_named_at_once(self, refused):
        message = refused("models: {a: nowhere, b: nothing}")
        assert len(message.splitlines()) == 2
        message = refused("models: {a: a}\nport: -1\nnodes: 0\nhots: x")
        assert [line.split(": ")[1] for line in message.splitlines()] == ["port", "nodes", "hots"]

    def test_a_flag_or_variable_is_named_as_the_source(self, refused):
        assert refused("models: {a: a}", port="x").startswith("--port: ")
        assert refused("models: {a: a}", environment={"AEGAEON_TTFT_SLO": "0"}).startswith("AEGAEON_TTFT_SLO: ")
        assert refused("models: {a: a}", instances="decode=1").startswith("--instances: ")
        assert "each role once" in refused("models: {a: a}", instances="mixed=1,mixed=2")
        assert refused("models: {a: a}", environment={"AEGAEON_INSTANCES": "prefill=x"}).startswith(
            "AEGAEON_INSTANCES: "
        )

    def test_a_flag_into_something_that_is_no_mapping(self, refused):
        assert "pool.yaml:2: slo: must be a mapping" in refused("models: {a: a}\nslo: 3", ttft_slo="1")

    @pytest.mark.parametrize("argument", ["a", "=a", "a="])
    def test_an_argument_must_be_name_and_folder(self, argument):
        with pytest.raises(SettingsError, match="NAME=DIR"):
            load_settings([argument], machine=MACHINE)

    def test_a_name_must_not_be_given_twice(self, tmp_path):
        with pytest.raises(SettingsError, match="'a' is given twice"):
            load_settings([f"a={tmp_path}", f"a={tmp_path}"], machine=MACHINE)

    def test_keys_are_never_shown(self, refused):
        assert "hunter2" not in refused("models: {a: a}\napi_keys: {hunter2: hunter2}")
        assert "hunter2" not in repr(PoolConfig(models=(), api_keys=("hunter2",)))

    def test_a_file_that_is_not_there_or_not_text(self, tmp_path):
        with pytest.raises(SettingsError, match=r"none\.yaml: cannot be read: No such file"):
            load_settings(file=tmp_path / "none.yaml", machine=MACHINE)
        with pytest.raises(SettingsError, match="cannot be read: Is a directory"):
            load_settings(file=tmp_path, machine=MACHINE)
        (tmp_path / "bytes.yaml").write_bytes(b"a: \xff\xfe")
        with pytest.raises(SettingsError, match="not text in UTF-8"):
            load_settings(file=tmp_path / "bytes.yaml", machine=MACHINE)

    def test_a_file_nested_without_end(self, refused):
        assert "nested too deeply" in refused("x: " + "[" * 100_000)


class TestCheckpoints:
    @pytest.fixture
    def refusal(self, tmp_path):
        """What is said of a folder."""
        folder = make_checkpoint(tmp_path / "m")

        def message() -> str:
            with pytest.raises(SettingsError) as caught:
                load_settings([f"m={folder}"], machine=MACHINE)
            return str(caught.value)

        return folder, message

    def test_missing(self, refusal):
        folder, message = refusal
        folder.rename(folder.with_name("gone"))
        assert "does not exist" in message()
        assert "hf download" in message()

    def test_a_file_instead_of_a_folder(self, refusal, tmp_path):
        with pytest.raises(SettingsError, match="is a file; give the folder"):
            load_settings([f"m={tmp_path / 'm' / 'config.json'}"], machine=MACHINE)

    def test_unreadable(self, refusal, monkeypatch):
        _, message = refusal

        def deny(path):
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr(Path, "iterdir", deny)
        assert "cannot be read: Permission denied; check its permissions" in message()

    def test_no_config(self, refusal):
        folder, message = refusal
        (folder / "config.json").unlink()
        assert "has no config.json" in message()

    @pytest.mark.parametrize("text", ["{", "[]", "\xff"])
    def test_config_that_is_not_json(self, refusal, text):
        folder, message = refusal
        (folder / "config.json").write_text(text, encoding="latin-1")
        assert "config.json is not" in message()

    def test_no_safetensors(self, refusal):
        folder, message = refusal
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
        assert "no *.safetensors file; pytorch_model.bin is of a format that is not served" in message()

    def test_git_lfs_pointer(self, refusal):
        folder, message = refusal
        (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
        assert "git lfs pull" in message()

    def test_an_index_that_names_a_missing_file(self, refusal):
        folder, message = refusal
        (folder / "model.safetensors").rename(folder / "model-1.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "model-2.safetensors"}}))
        assert "download is incomplete" in message()

    @pytest.mark.parametrize("weight_map", [{}, 3, {"x": "../model.safetensors"}, {"x": "/etc/passwd"}])
    def test_an_index_that_names_nothing_of_the_folder(self, refusal, weight_map):
        folder, message = refusal
        (folder / "model.safetensors").rename(folder / "model-1.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        assert "must name files of its own folder" in message()

    def test_the_single_file_counts_before_the_index(self, tmp_path):
        folder = make_checkpoint(tmp_path / "m", weight_bytes=40 << 20)
        write_weights(folder / "part.safetensors", 5 << 20)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "part.safetensors"}}))
        assert load_settings([f"m={folder}"], machine=MACHINE).weight_cache_bytes == 42 << 20
        (folder / "model.safetensors").unlink()
        assert load_settings([f"m={folder}"], machine=MACHINE).weight_cache_bytes == 6 << 20

    @pytest.mark.parametrize(
        ("config", "flags", "size"),
        [
            ({}, {}, 20 << 20),
            ({}, {"dtype": "float32"}, 40 << 20),
            ({"torch_dtype": "bfloat16"}, {"dtype": "float32"}, 40 << 20),
            ({"dtype": "float32"}, {}, 40 << 20),
            ({"text_config": {"dtype": "torch.float32"}}, {}, 40 << 20),
            ({"dtype": "float32"}, {"dtype": "float16"}, 20 << 20),
        ],
    )
    def test_weights_that_are_converted_count_as_converted(self, tmp_path, config, flags, size):
        folder = make_checkpoint(tmp_path / "m", weight_bytes=(20 << 20) - 4096)
        (folder / "config.json").write_text(json.dumps(config))
        assert load_settings([f"m={folder}"], flags=flags, machine=MACHINE).weight_cache_bytes == size

    def test_a_bad_folder_does_not_stop_the_others(self, tmp_path):
        good, bad = make_checkpoint(tmp_path / "good"), tmp_path / "bad"
        config = load_settings([f"bad={bad}", f"good={good}"], machine=MACHINE)
        assert [model.name for model in config.models] == ["bad", "good"]
        with pytest.raises(SettingsError, match=r"bad.* does not exist(?s:.*)worse.* does not exist"):
            load_settings([f"bad={bad}", f"worse={tmp_path / 'worse'}"], machine=MACHINE)


class TestSizes:
    @pytest.mark.parametrize(
        ("text", "size"),
        [
            ("512MiB", 512 << 20),
            ("4GiB", 4 << 30),
            ("4 gib", 4 << 30),
            ("1.5KiB", 1536),
            ("4GB", 4 * 10**9),
            ("7", 7),
            (7, 7),
        ],
    )
    def test_sizes(self, text, size):
        assert parse_bytes(text) == size

    @pytest.mark.parametrize("text", ["4G", "-1", "", "GiB", "1e9", True, None, [], "4 4", "٤"])
    def test_no_sizes(self, text):
        with pytest.raises(ValueError, match="512MiB"):
            parse_bytes(text)

    @given(st.integers(0, 1 << 50))
    def test_what_is_shown_can_be_read_back_within_its_digits(self, size):
        assert parse_bytes(format_bytes(size)) == pytest.approx(size, rel=0.05, abs=0)

    @pytest.mark.parametrize(
        ("count", "text"), [(0, "0"), (999, "999"), (1_234, "1.23K"), (135_000_000, "135M"), (7_615_616_512, "7.62B")]
    )
    def test_counts_are_written_as_models_are_named(self, count, text):
        assert format_count(count) == text


class TestOneDeclaration:
    def test_policies_are_those_of_the_scheduler(self):
        [policy] = [option for option in OPTIONS if option.key == "policy"]
        assert set(policy.choices) == set(POLICIES)

    def test_every_field_of_the_configuration_has_an_option(self):
        pool = {option.config_field for option in OPTIONS if option.scope is not Scope.MODEL}
        assert pool == {field.name for field in fields(PoolConfig)} - {"models"}
        model = {option.config_field for option in OPTIONS if option.scope is Scope.MODEL}
        assert model == {field.name for field in fields(ModelConfig)} - {"name", "path"}

    def test_names_are_distinct(self):
        for name in ("key", "flag", "variable", "parameter"):
            assert len({getattr(option, name) for option in OPTIONS}) == len(OPTIONS)

    def test_defaults_satisfy_their_own_bounds(self):
        numbers = [
            option
            for option in OPTIONS
            if isinstance(option.default, int | float) and option.kind is not OptionKind.SWITCH
        ]
        assert numbers
        assert all(option.low <= option.default <= option.high for option in numbers)

    @pytest.mark.parametrize("name", ["README.md", "docs/configuration.md"])
    def test_examples_in_the_documentation_are_valid(self, name, tmp_path):
        examples = re.findall(r"```yaml\n(.*?)```", (ROOT / name).read_text(encoding="utf-8"), re.DOTALL)
        assert examples
        for text in examples:
            (tmp_path / "pool.yaml").write_text(text)
            assert validate(read_sources((), tmp_path / "pool.yaml", {}, {})).model_fields_set

    def test_the_documentation_is_made_from_it(self):
        text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
        assert replace_reference(text) == text, "run: python -m aegaeon.settings.reference docs/configuration.md"


def test_a_variable_that_is_nearly_known_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    environment = {"AEGAEON_PRT": "1", "AEGAEON_SERVICE_HOST": "10.0.0.1", "AEGAEON_PORT": "9", "HOME": "/"}
    read_sources([f"a={tmp_path}"], None, {}, environment)
    assert [record.getMessage() for record in caplog.records] == [
        "the variable AEGAEON_PRT is not known and has no effect; did you mean AEGAEON_PORT?"
    ]
