"""Profile files, the book that finds them, the tool that writes them, and the profiles that ship."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from aegaeon.latency.__main__ import main
from aegaeon.latency.estimate.errors import LatencyError, UnknownNameError
from aegaeon.latency.files.profile_book import ProfileBook
from aegaeon.latency.files.profile_file import ProfileFile

PROFILES = Path(__file__).parents[2] / "profiles"
SHIPPED = sorted(path for path in PROFILES.glob("*/*.json") if path.parent.name != "models")


@pytest.fixture(scope="module")
def book() -> ProfileBook:
    return ProfileBook.open(PROFILES)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_shipped_profile_is_within_ten_percent_or_says_that_it_is_an_estimate(path: Path) -> None:
    file = ProfileFile.read(path)
    assert file.device == path.parent.name
    assert path.stem in (file.model, f"{file.model}-tp{file.tp}")
    assert file.provenance.source
    assert file.provenance.licence == "Apache-2.0"
    profile = file.coefficients.profile
    assert min(file.coefficients.model_dump().values()) >= 0
    assert profile.prefill_s([2000]) > profile.prefill_s([20]) > 0
    if file.estimated:
        assert file.fit is None
    else:
        assert file.fit is not None
        assert max(file.fit.prefill_percent, file.fit.decode_percent) <= 10
        assert file.validity is not None


def test_what_ships() -> None:
    assert len([path for path in SHIPPED if not ProfileFile.read(path).estimated]) == 33
    assert {path.parent.name for path in SHIPPED} == {"h100", "h800", "h20", "a100", "a10"}


@pytest.mark.parametrize("model", ["qwen2.5-7b", "yi-1.5-9b", "llama-2-13b"])
def test_the_models_of_the_paper_are_measured_on_the_device_of_the_paper(book: ProfileBook, model: str) -> None:
    entry = book.find(model, "h100")
    assert not entry.estimated
    assert 7e-3 < entry.profile.decode_step_s(1000, 1) < 16e-3
    artifact = ProfileBook.open(PROFILES / "artifact").find(model, "H100")
    assert artifact.weight_bytes >> 30 in (14, 18, 26)
    assert artifact.profile.decode_step_s(1000, 1) == pytest.approx(entry.profile.decode_step_s(1000, 1), rel=0.1)


@pytest.mark.parametrize("name", ["Qwen/Qwen2.5-7B-Instruct", "qwen2_5_7b", "QWEN2.5-7B", "some/folder/qwen2.5-7b"])
def test_a_model_is_found_whatever_its_punctuation(book: ProfileBook, name: str) -> None:
    assert book.find(name, "H100") == book.find("qwen2.5-7b", "h100")


def test_a_model_that_several_devices_share(book: ProfileBook) -> None:
    entry = book.find("qwen2.5-72b", "h100")
    assert (entry.tp, entry.estimated) == (4, True)
    assert entry.weight_bytes == pytest.approx(2 * 72.7e9, rel=0.001)
    assert book.find("qwen2.5-72b-tp4", "h100") == entry


def test_what_nobody_measured_is_estimated(book: ProfileBook) -> None:
    entry = book.find("yi-1.5-9b", "a10")
    assert entry.estimated
    assert entry.kv_shape == book.find("yi-1.5-9b", "h100").kv_shape
    assert book.find("qwen2.5-7b", "h200").profile.d0_s < book.find("qwen2.5-7b", "a100").profile.d0_s


def test_unknown_names_are_answered_with_the_likest_first(book: ProfileBook) -> None:
    with pytest.raises(UnknownNameError, match=r"no model is called 'llama-2-14b' .* there are: llama-2-13b, "):
        book.find("llama-2-14b", "h100")
    with pytest.raises(UnknownNameError, match="no device is called 'h80'; there are: h800, "):
        book.find("qwen2.5-7b", "h80")
    bare = ProfileBook.open(PROFILES / "artifact")
    with pytest.raises(UnknownNameError, match=r"no device is called 'a10'; there are: h100$"):
        bare.find("qwen2.5-7b", "a10")
    with pytest.raises(UnknownNameError, match="no model is called 'qwen-7b'"):
        bare.find("qwen-7b", "h100")


def test_folders_and_files_that_are_no_profiles(tmp_path: Path) -> None:
    with pytest.raises(LatencyError, match="no folder of latency profiles"):
        ProfileBook.open(tmp_path / "absent")
    with pytest.raises(LatencyError, match="holds no latency profile"):
        ProfileBook.open(tmp_path)
    folder = tmp_path / "h100"
    folder.mkdir()
    good = json.loads((PROFILES / "h100" / "qwen2.5-7b.json").read_text())
    for change, said in [
        ({"weight_bytes": 0}, "weight_bytes: Input should be greater than or equal to 1"),
        ({"estimated": True}, "an estimated profile has no fit"),
        ({"surprise": 1}, "surprise: Extra inputs are not permitted"),
        (
            {"coefficients": {**good["coefficients"], "d0_s": "fast"}},
            "coefficients.d0_s: Input should be a valid number",
        ),
    ]:
        (folder / "bad.json").write_text(json.dumps({**good, **change}))
        with pytest.raises(LatencyError, match=said) as caught:
            ProfileBook.open(tmp_path)
        assert "bad.json" in str(caught.value)
    (folder / "bad.json").write_text('{"format": ')
    with pytest.raises(LatencyError, match=r"bad\.json is not a latency profile"):
        ProfileBook.open(tmp_path)


def test_two_profiles_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "h100").mkdir()
    for name in ("a", "b"):
        shutil.copy(PROFILES / "h100" / "qwen2.5-7b.json", tmp_path / "h100" / f"{name}.json")
    with pytest.raises(LatencyError, match="names must differ"):
        ProfileBook.open(tmp_path)


def test_a_file_survives_being_written(tmp_path: Path) -> None:
    file = ProfileFile.read(PROFILES / "h20" / "yi-1.5-9b.json")
    file.write(tmp_path / "new" / "x.json")
    assert ProfileFile.read(tmp_path / "new" / "x.json") == file
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["x.json"]


# -- the tool


def test_estimates_are_written_from_any_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = json.loads((PROFILES / "models" / "llama-2-7b.json").read_text())["config"]
    source = tmp_path / "my-model" / "config.json"
    source.parent.mkdir()
    source.write_text(json.dumps(config))
    assert main(["estimate", str(source), "--device", "A100", "--tp", "2", "--out", str(tmp_path / "out")]) == 0
    assert "estimate" in capsys.readouterr().out
    entry = ProfileBook.open(tmp_path / "out").find("my-model", "a100")
    assert (entry.model, entry.tp, entry.estimated) == ("my-model", 2, True)


def test_an_estimate_never_replaces_a_measurement(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(PROFILES / "h100", tmp_path / "h100")
    before = (tmp_path / "h100" / "qwen2.5-7b.json").read_text()
    facts = str(PROFILES / "models" / "qwen2.5-7b.json")
    assert main(["estimate", facts, "--device", "h100", "--out", str(tmp_path)]) == 1
    assert "is a measured profile" in capsys.readouterr().err
    assert (tmp_path / "h100" / "qwen2.5-7b.json").read_text() == before


@pytest.mark.parametrize(
    ("content", "device", "said"),
    [
        ("{", "h100", "as JSON"),
        ("[]", "h100", "no JSON object"),
        ("{}", "h100", "does not say 'hidden_size'"),
        ('{"hidden_size": 1}', "h1", "no device is called 'h1'"),
    ],
)
def test_bad_configs_end_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, device: str, said: str
) -> None:
    (tmp_path / "config.json").write_text(content)
    assert main(["estimate", str(tmp_path / "config.json"), "--device", device, "--out", str(tmp_path / "out")]) == 1
    message = capsys.readouterr().err
    assert said in message
    assert message.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_measurements_of_an_unknown_model_name_the_known_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "m.csv"
    path.write_text("model,device,input_len,batch_size,prefill_ms,decode_step_ms\nyi,h100,16,1,10,9\n")
    models = str(PROFILES / "models")
    assert main(["fit", str(path), "--models", models, "--out", str(tmp_path / "out"), "--date", "2026-11-21"]) == 1
    assert "no model is called 'yi'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
