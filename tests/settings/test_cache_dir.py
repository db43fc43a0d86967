"""Where images of checkpoints are kept."""

from collections.abc import Callable
from pathlib import Path

import pytest

from aegaeon.core.config import ModelConfig
from aegaeon.engine.architecture.prepare import prepare_models
from aegaeon.settings.cache_dir import default_cache_dir
from aegaeon.settings.load import load_settings


@pytest.mark.parametrize(
    ("environment", "folder"),
    [
        ({"XDG_CACHE_HOME": "/cache", "HOME": "/usr"}, "/cache/aegaeon"),
        ({"XDG_CACHE_HOME": "relative", "HOME": "/usr"}, "/usr/.cache/aegaeon"),
        ({"XDG_CACHE_HOME": "", "HOME": "/usr"}, "/usr/.cache/aegaeon"),
        ({"HOME": ""}, None),
        ({"HOME": "/usr/nobody is called so"}, None),
    ],
)
def test_the_default_is_in_the_cache_of_the_user(environment: dict[str, str], folder: str | None) -> None:
    assert default_cache_dir(environment) == (folder and Path(folder))


def test_without_home_and_passwd_entry_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(uid: int) -> object:
        raise KeyError(uid)

    monkeypatch.setattr("pwd.getpwuid", unknown)
    assert default_cache_dir({}) is None


def test_a_folder_that_is_named_goes_before_the_default(model_paths: Callable[[int], dict[str, Path]]) -> None:
    models = [f"m0={model_paths(1)['m0']}"]
    environment = {"XDG_CACHE_HOME": "/cache", "AEGAEON_CACHE_DIR": "/named"}
    assert load_settings(models, environment={"XDG_CACHE_HOME": "/cache"}).cache_dir == Path("/cache/aegaeon")
    assert load_settings(models, environment=environment).cache_dir == Path("/named")
    assert load_settings(models, flags={"cache_dir": "/flag"}, environment=environment).cache_dir == Path("/flag")


@pytest.mark.parametrize(("cache", "says"), [(None, "no home folder"), (Path("/proc/none"), "cannot write an image")])
def test_without_a_place_only_models_that_need_an_image_are_refused(
    model_paths: Callable[[int], dict[str, Path]], cache: Path | None, says: str
) -> None:
    plain = ModelConfig("plain", model_paths(1)["m0"])
    other_type = ModelConfig("other-type", plain.path, dtype="bfloat16")
    prepared, refused = prepare_models([other_type, plain], 16, cache)
    assert [model.config.name for model in prepared] == ["plain"]
    assert [bad.config.name for bad in refused] == ["other-type"]
    assert says in refused[0].reason
    assert "--cache-dir" in refused[0].reason
