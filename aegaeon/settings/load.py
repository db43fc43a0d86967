"""From flags, environment and file to the finished ``PoolConfig``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from aegaeon.core.config import InstanceConfig, KvDiskConfig, ModelConfig, PoolConfig
from aegaeon.core.instance import Role
from aegaeon.core.slo import Slo
from aegaeon.scheduler.policies.registry import POLICIES
from aegaeon.settings.cache_dir import default_cache_dir
from aegaeon.settings.checkpoint import weight_bytes
from aegaeon.settings.error import SettingsError
from aegaeon.settings.machine import Machine, fit, read_machine
from aegaeon.settings.options import OPTIONS, OptionKind, Scope
from aegaeon.settings.schema import given, validate
from aegaeon.settings.sources import Sources, read_sources

_NO_MODEL = (
    "no model to serve; name some as NAME=DIR, or in a file: aegaeon serve --config pool.yaml with\n"
    "models:\n  my-model: path/to/its/folder"
)


def load_settings(
    models: Sequence[str] = (),
    file: Path | None = None,
    flags: Mapping[str, object] | None = None,
    environment: Mapping[str, str] | None = None,
    machine: Machine | None = None,
) -> PoolConfig:
    """The complete configuration: flag over environment over file over what fits the machine.

    ``models``: ``NAME=DIR``; ``flags``: values by ``Option.parameter``. Raises ``SettingsError`` for whatever cannot
    work, as far as that can be told without torch; a model that cannot be served is an error if there is no other.
    """
    return read_settings(models, file, flags, environment).settle(machine or read_machine())


@dataclass(frozen=True, slots=True)
class Settings:
    """What was asked for. ``config`` has holes where the machine is to decide; ``weight_bytes``: by model."""

    config: PoolConfig
    weight_bytes: Mapping[str, int]

    def settle(self, machine: Machine) -> PoolConfig:
        """The complete configuration. Raises ``SettingsError`` where the machine has too little of something."""
        return fit(self.config, machine, self.weight_bytes)


def read_settings(
    models: Sequence[str] = (),
    file: Path | None = None,
    flags: Mapping[str, object] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Settings:
    """What ``load_settings`` returns, without looking at the machine, which may take long."""
    sources = read_sources(models, file, flags or {}, environment or {})
    values = validate(sources)
    found, sizes = _models(values, sources)
    config = PoolConfig(models=found, **_pool_values(values, sources))
    return Settings(replace(config, cache_dir=config.cache_dir or default_cache_dir(environment or {})), sizes)


def _pool_values(values: BaseModel, sources: Sources) -> dict[str, Any]:
    chosen = given(values)
    fields = {
        option.config_field: _resolved(chosen[option.key], option.kind, sources.folder(option.path))
        for option in OPTIONS
        if option.scope is not Scope.MODEL and option.key in chosen
    }
    profile_dir = _profile_dir(fields.get("profile_dir"), sources)
    instances = _instances(chosen.get("instances"), sources)
    _require_driven(fields.get("policy"), instances, sources)
    kv_disk = _kv_disk(chosen.get("kv_disk"), fields.get("prefix_cache"), sources)
    return fields | {"instances": instances, "profile_dir": profile_dir, "kv_disk": kv_disk}


def _kv_disk(given_disk: tuple[Path, int] | None, prefix_cache: str | None, sources: Sources) -> KvDiskConfig | None:
    if given_disk is None:
        return None
    if prefix_cache == "off":
        label = sources.label(("prefix_cache",))
        raise SettingsError(f"{label}: with off no KV is kept, so there is none for kv_disk; leave one of them out")
    path, size_bytes = given_disk
    return KvDiskConfig((sources.folder(("kv_disk",)) / path.expanduser()).absolute(), size_bytes)


def _require_driven(policy: str | None, instances: Sequence[InstanceConfig], sources: Sources) -> None:
    """A policy that runs requests to their end drives only instances that do both phases."""
    roles = POLICIES[policy].roles if policy is not None else frozenset(Role)
    if any(instance.role not in roles for instance in instances):
        raise SettingsError(
            f"{sources.label(('instances',))}: the policy {policy} prefills and decodes on the same instance; give a "
            "number, such as 3, or choose another policy"
        )


def _profile_dir(given_dir: Path | None, sources: Sources) -> Path | None:
    if given_dir is not None and not given_dir.is_dir():
        raise SettingsError(f"{sources.label(('profile_dir',))}: there is no folder {given_dir}")
    return given_dir and given_dir.absolute()  # processes of the pool may run elsewhere


def _resolved(value: Any, kind: OptionKind, folder: Path) -> Any:
    return folder / value.expanduser() if kind is OptionKind.PATH else value


def _instances(counts: Mapping[Role, int] | None, sources: Sources) -> tuple[InstanceConfig, ...]:
    """Empty where nothing was said: as many as fit the machine."""
    if counts is None:
        return ()
    instances = tuple(InstanceConfig(role, count) for role, count in counts.items() if count)
    label = sources.label(("instances",))
    if not instances:
        raise SettingsError(f"{label}: a pool needs at least one instance; leave it out for what fits the machine")
    if not any(instance.role.prefills for instance in instances):
        raise SettingsError(f"{label}: no instance can prefill; add a prefill or mixed one, such as prefill=1")
    if not any(instance.role.decodes for instance in instances):
        raise SettingsError(f"{label}: no instance can decode; add a decode or mixed one, such as decode=1")
    return instances


def _models(values: BaseModel, sources: Sources) -> tuple[tuple[ModelConfig, ...], dict[str, int]]:
    """The models, and the bytes of the weights of those that can be served.

    The others are refused when the service starts, and do not stop it. Only where there is none that can be served one
    error names them all.
    """
    models = given(values).get("models", {})
    if not models:
        raise SettingsError(_NO_MODEL)
    defaults = _model_values(values, sources, ())
    found: list[ModelConfig] = []
    sizes: dict[str, int] = {}
    problems: list[str] = []
    for name, model in models.items():
        found.append(config := _model(name, model, defaults, sources))
        try:
            sizes[name] = weight_bytes(config.path, config.dtype)
        except SettingsError as error:
            problems.append(f"{sources.label(('models', name, 'path'))}: {error}")
    if not sizes:
        raise SettingsError("\n".join(problems))
    return tuple(found), sizes


def _model(name: str, model: BaseModel, defaults: Mapping[str, Any], sources: Sources) -> ModelConfig:
    path = ("models", name)
    directory = sources.folder((*path, "path")) / Path(given(model)["path"]).expanduser()
    values = {**defaults, **_model_values(model, sources, path)}
    slo = Slo(**{target: values.pop(target) for target in ("ttft_s", "tpot_s") if target in values})
    return ModelConfig(name, directory, slo, **values)


def _model_values(values: BaseModel, sources: Sources, path: tuple[str, ...]) -> dict[str, Any]:
    """What is said of a model at ``path``, or of every model (empty path), by field of ``ModelConfig`` and ``Slo``."""
    chosen = given(values)
    said = given(chosen["slo"]) if "slo" in chosen else {}
    said |= {key: chosen[key] for key in ("max_context_tokens", "dtype", "generation_config") if key in chosen}
    if "chat_template" in chosen:
        said["chat_template"] = _template(chosen["chat_template"], (*path, "chat_template"), sources)
    return said


def _template(text: str, path: tuple[str, ...], sources: Sources) -> str:
    """The template's text; a value without braces is the name of a file that holds it."""
    if "{" in text:
        return text
    file = sources.folder(path) / Path(text).expanduser()
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{sources.label(path)}: cannot read the chat template {file}: {error}") from error
