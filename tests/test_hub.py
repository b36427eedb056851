"""Model folders: readable for ever, whole or absent, never more than data; and a folder that acts as the hub."""

import contextlib
import json
import random
import shutil
from pathlib import Path

import pytest
import torch

from perceivers import from_pretrained, push_to_hub, save_pretrained
from perceivers.files.tensor_files import load_tensors
from reference_files import REFERENCE, relative_error, under

FROZEN = REFERENCE / "frozen-2"


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(FROZEN, tmp_path / "model")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Return a folder that acts as the hub, with the frozen model as owner/model, and a list of the requests."""
    import huggingface_hub

    asked = []
    repository = shutil.copytree(FROZEN, tmp_path / "hub")

    def snapshot_download(name, **options):
        asked.append((name, options))
        if name != "owner/model":
            raise huggingface_hub.errors.LocalEntryNotFoundError(f"no {name} here")
        return str(repository)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setenv("PERCEIVERS_CACHE", str(tmp_path / "cache"))
    return repository, asked


@pytest.mark.parametrize("number", [1, 2])
def test_the_frozen_models_compute_what_they_did(number):
    """The model folder of each format loads, now and in later versions."""
    frozen = REFERENCE / f"frozen-{number}"
    assert f'"format": {number},' in (frozen / "model.json").read_text()
    recorded = load_tensors(frozen.with_suffix(".safetensors"))
    model = from_pretrained(frozen)
    with torch.no_grad():
        outputs = model({"points": under("in:", recorded)})
    expected = under("out:", recorded)
    assert outputs.keys() == expected.keys()
    assert all(relative_error(outputs[name], expected[name]) <= 1e-5 for name in expected)
    assert model.schema.outputs["label"].classes == ("ant", "bee", "cat")


def test_saving_and_loading_is_bitwise(tmp_path):
    model = from_pretrained(FROZEN)
    save_pretrained(model, tmp_path / "again")
    again = from_pretrained(tmp_path / "again")
    assert again.schema == model.schema
    assert again.config == model.config
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), model.state_dict().values(), strict=True))


def test_names_of_the_hub(hub):
    _, asked = hub
    model = from_pretrained("owner/model", revision="v2", offline=True)
    assert torch.equal(model.trunk.latents, from_pretrained(FROZEN).trunk.latents)
    ((name, options),) = asked
    assert (name, options["revision"], options["local_files_only"]) == ("owner/model", "v2", True)
    assert not any(pattern.endswith((".py", ".bin", ".pickle")) for pattern in options["allow_patterns"])


def test_a_repository_that_changed_is_refused(hub):
    repository, _ = hub
    from_pretrained("owner/model")
    save_pretrained(_changed(from_pretrained(repository)), repository)
    with pytest.raises(ValueError, match="owner/model@main has changed since it was first used"):
        from_pretrained("owner/model")


def _changed(model):
    with torch.no_grad():
        model.trunk.latents.add_(1)
    return model


def test_a_repository_of_another_library_says_how_to_convert_it(hub):
    repository, _ = hub
    (repository / "model.json").unlink()
    with pytest.raises(ValueError, match="perceivers convert owner/model FOLDER --model NAME"):
        from_pretrained("owner/model")


def test_convert_fetches_what_is_no_folder(command, hub, tmp_path):
    _, asked = hub
    code, _, err = command("convert", "owner/model", tmp_path / "dest", "--model", "language")
    assert code == 2  # the frozen model is not a released one
    assert len(err.strip().splitlines()) == 1
    ((name, options),) = asked
    assert name == "owner/model"
    assert "config.json" in options["allow_patterns"]


@pytest.mark.parametrize("name", ["owner/other", "nowhere", "a/b/c"])
def test_what_is_nowhere_is_an_error_of_one_line(hub, name):
    with pytest.raises(ValueError, match="no such folder, and not") as caught:
        from_pretrained(name)
    assert len(str(caught.value).splitlines()) == 1


def test_push_saves_then_uploads(monkeypatch, tmp_path):
    import huggingface_hub

    calls = []

    class Api:
        def __init__(self, token=None):
            calls.append(("token", token))

        def create_repo(self, name, exist_ok):
            calls.append(("create", name))

        def upload_folder(self, repo_id, folder_path):
            calls.append(("upload", repo_id, sorted(path.name for path in Path(folder_path).iterdir())))
            return "address"

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    assert push_to_hub(from_pretrained(FROZEN), "owner/new", tmp_path / "out", token="t") == "address"
    files = ["README.md", "manifest.json", "model.json", "model.safetensors"]
    assert calls == [("token", "t"), ("create", "owner/new"), ("upload", "owner/new", files)]
    assert "library_name: perceivers" in (tmp_path / "out" / "README.md").read_text()


LIES = {
    "not JSON": "{",
    "a list": "[]",
    "another format": '{"format": 2}',
    "no schema": '{"format": 1, "config": {}}',
    "a deep hole": "[" * 100_000,
    "an import path": lambda d: d["schema"]["inputs"]["points"].update(kind="os.system"),
    "an unknown field": lambda d: d["config"].update(_target_="os.system"),
    "another width": lambda d: d["config"]["latents"].update(channels=24),
    "a huge width": lambda d: d["config"]["latents"].update(num_latents=10**9),
    "more layers": lambda d: d["config"]["processor"].update(num_layers=3),
    "fewer layers": lambda d: d["config"]["processor"].update(num_layers=1),
    "no numbers": lambda d: d["config"]["processor"].update(num_layers="many"),
    "less than nothing": lambda d: d["config"]["latents"].update(channels=-4),
}


@pytest.mark.parametrize("lie", LIES)
def test_lying_descriptions_are_errors_of_one_line(folder, lie):
    path = folder / "model.json"
    if callable(LIES[lie]):
        description = json.loads(path.read_text())
        LIES[lie](description)
        path.write_text(json.dumps(description))
    else:
        path.write_text(LIES[lie])
    (folder / "manifest.json").unlink()  # the manifest would reveal any change
    with pytest.raises(ValueError, match=r"model\.(json|safetensors)") as caught:
        from_pretrained(folder)
    assert len(str(caught.value).splitlines()) == 1


def test_a_manifest_cannot_name_files_elsewhere(folder):
    (folder / "manifest.json").write_text('{"../hub": {}}')
    with pytest.raises(ValueError, match="is not the name of a file in its folder"):
        from_pretrained(folder)


@pytest.mark.parametrize("number", range(20))
def test_damaged_weights_are_errors_or_numbers(folder, number):
    (folder / "manifest.json").unlink()
    path, chance = folder / "model.safetensors", random.Random(number)
    data = bytearray(path.read_bytes())
    if number % 2:
        path.write_bytes(data[: chance.randrange(len(data))])
        with pytest.raises(ValueError, match=r"model\.safetensors"):
            from_pretrained(folder)
    else:
        for _ in range(5):
            data[chance.randrange(2000)] ^= 1 << chance.randrange(8)
        path.write_bytes(data)
        with contextlib.suppress(ValueError):
            from_pretrained(folder)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.pystate", b"cos\nsystem\n(S'true'\ntR."),
        ("a.pickle", b""),
        ("a.pickle", b"\x80\x04N."),
        ("folder/config.json", b"[]"),
        ("folder/config.json", b"{}"),
        ("folder/model.safetensors", b"\xff" * 64),
        ("folder/pytorch_model.bin", b"cos\nsystem\n(S'true'\ntR."),
    ],
)
def test_convert_refuses_what_is_no_checkpoint(command, tmp_path, name, content):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    source = path if path.parent == tmp_path else path.parent
    code, out, err = command("convert", source, tmp_path / "dest", "--model", "language")
    assert (code, out) == (2, "")
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "dest").exists()
    assert sorted(p for p in tmp_path.rglob("*") if p.is_file()) == [path]


def test_convert_a_pickle_there_and_back(command, tmp_path):
    pickle = REFERENCE / "pickles" / "flow.pystate"
    settings = ["config.processor.num_heads=4", "schema.inputs.frames.size=[12, 16]"]
    code, out, _ = command("convert", pickle, tmp_path / "flow", "--model", "optical-flow", "--set", *settings)
    assert code == 0
    assert "59,726 parameters" in out
    recorded = under("in:", _flow())
    frames = recorded["images"]
    with torch.no_grad():
        flow = from_pretrained(tmp_path / "flow")(frames)["flow"]
    assert relative_error(flow, under("out:", _flow())["y"]) <= 1e-5
    again = command("convert", pickle, tmp_path / "flow", "--model", "optical-flow")
    assert again[0] == 2
    assert "exists" in again[2]


def _flow():
    from reference_files import read

    return read("flow")
