"""Saving replaces the previous model and nothing else, in any folder, and an interruption leaves a whole model."""

import errno
import hashlib
import json
import os
import re
import shutil
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from perceivers import Numbers, PerceiverIO, Schema, from_pretrained, push_to_hub, save_pretrained
from perceivers.core.block_config import Axis, Rotary
from perceivers.core.config import (
    BottleneckConfig,
    Config,
    EncoderConfig,
    LatentAxis,
    LatentsConfig,
    ProcessorConfig,
)
from perceivers.data.formats.writers import write_rows
from perceivers.files import durable_folder
from perceivers.files.durable import sweep, write_text
from perceivers.files.durable_folder import READY, check_folder, remove_folder, write_folder
from perceivers.pretrained.checkpoint_files import write_huggingface
from perceivers.pretrained.hub import check_repository, path_of_folder
from perceivers.pretrained.model_folder import savable
from perceivers.training.checkpoints import checkpoints
from reference_files import REFERENCE
from small_run import small_records, trained

pytestmark = pytest.mark.filterwarnings("ignore:.*rotary. axis .* has no effect")

FROZEN = REFERENCE / "frozen-1"
OURS = ["README.md", "manifest.json", "model.json", "model.safetensors"]
KEY = "decoder.cross_attention.attention.key"
CHANGES = {"open", "os.rename", "os.link", "os.remove", "os.rmdir", "os.mkdir", "os.chmod"}


@pytest.fixture
def model():
    return from_pretrained(FROZEN)


@pytest.fixture
def changed():
    model = from_pretrained(FROZEN)
    with torch.no_grad():
        model.trunk.latents.add_(1)
    return model


@pytest.fixture
def folder(tmp_path, model):
    """Return a folder with a saved model and files of other people."""
    folder = tmp_path / "folder"
    save_pretrained(model, folder)
    (folder / "thesis.txt").write_text("years of work")
    (folder / ".hidden").write_text("hidden")
    (folder / ".mine.unfinished").write_text("not ours")
    (folder / "chapters").mkdir()
    (folder / "chapters" / "model.json").write_text("one")
    (folder / "link").symlink_to("thesis.txt")
    (folder / "nowhere").symlink_to("missing")
    (folder / "thesis.txt").chmod(0o400)
    return folder


def others(folder):
    """Return the content and permissions of all other files in a folder."""
    paths = [path for path in sorted(folder.rglob("*")) if path.relative_to(folder).as_posix() not in OURS]
    return {
        str(path.relative_to(folder)): (path.lstat().st_mode, path.read_bytes() if path.is_file() else None)
        for path in paths
    }


def latents(folder):
    return from_pretrained(folder).trunk.latents.detach().clone()


def test_a_folder_with_other_files_keeps_them(folder, changed):
    before = others(folder)
    save_pretrained(changed, folder)
    assert others(folder) == before
    assert torch.equal(latents(folder), changed.trunk.latents)
    check_folder(folder)


def test_a_folder_without_a_model_keeps_its_files(tmp_path, model):
    (tmp_path / "tokenizer.json").write_text("{}")
    save_pretrained(model, tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted([*OURS, "tokenizer.json"])
    assert (tmp_path / "tokenizer.json").read_text() == "{}"


def foreign(name, text="mine"):
    def change(folder):
        (folder / name).unlink(missing_ok=True)
        (folder / name).write_text(text)

    return change


def as_folder(folder):
    (folder / "model.json").unlink()
    (folder / "model.json").mkdir()


def pruned(model):
    prune.random_unstructured(model.get_submodule(KEY), "weight", 0.5)


def normed(model):
    parametrizations.weight_norm(model.get_submodule(KEY))


def adapted(model):
    """Wrap the layer in another one that has layers of its own, as LoRA adapters do."""
    layer = nn.Module()
    layer.base_layer, layer.lora_A = model.get_submodule(KEY), nn.Linear(12, 2)
    model.set_submodule(KEY, layer)


def extended(model):
    model.extra = nn.Linear(2, 2)


def buffered(model):
    model.register_buffer("thing", torch.zeros(2))


def shortened(model):
    model.decoder.cross_attention.mlp_norm = nn.Identity()


def tied(model):
    model.get_submodule(KEY).weight = model.get_submodule(KEY.replace("key", "value")).weight


def resized(model):
    model.get_submodule(KEY).weight = nn.Parameter(torch.zeros(3, 5))


def of_another_schema(model):
    label = replace(model.schema.outputs["label"], classes=7)
    model.schema = replace(model.schema, outputs={**model.schema.outputs, "label": label})


def complex_(model):
    model.trunk.latents = nn.Parameter(model.trunk.latents.to(torch.complex64))


def diverged(model):
    with torch.no_grad():
        model.trunk.latents[0, 0] = torch.nan


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (pruned, r"key\.weight_orig is none of the arrays .* remove pruning"),
        (normed, r"key\.parametrizations\.weight\.original0 is none .* parametrisations"),
        (adapted, r"base_layer\.weight is none of the arrays .*merge adapters \(merge_and_unload\)"),
        (extended, r"extra\.weight is none of the arrays that its schema and config build"),
        (buffered, "thing is none of the arrays"),
        (shortened, r"mlp_norm\.weight is missing"),
        (tied, r"value\.weight and .*key\.weight are one tensor|key\.weight and .*value\.weight are one tensor"),
        (resized, r"key\.weight is \[3, 5\], its schema and config build"),
        (of_another_schema, r"its schema and config build \[7, "),
        (complex_, r"trunk\.latents is of torch\.complex64, its schema and config build torch\.float32"),
        (diverged, r"trunk\.latents is not finite"),
        (lambda model: model.to("meta"), "is on the device meta"),
    ],
)
def test_a_model_that_would_not_load_is_not_saved(folder, changed, change, message):
    """The previous model stays."""
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    change(changed)
    for save in (lambda: save_pretrained(changed, folder), lambda: write_huggingface(changed, folder)):
        with pytest.raises(ValueError, match=message) as caught:
            save()
        assert len(str(caught.value).splitlines()) == 1
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_what_is_no_model_of_ours_is_not_saved(tmp_path, model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside torch
        quantised = torch.ao.quantization.quantize_dynamic(from_pretrained(FROZEN), {nn.Linear})
    others = {"NoneType": None, "Linear": nn.Linear(2, 2), "Sequential": nn.Sequential(model)}
    for name, other in others.items():
        with pytest.raises(ValueError, match=f"^model is a {name}, not a PerceiverIO or a Resampler: merge"):
            savable(other)
    with pytest.raises(ValueError, match="is none of the arrays that its schema and config build"):
        save_pretrained(quantised, tmp_path / "folder")
    for place in (None, 3, b"x", "", "a\0b"):
        with pytest.raises(ValueError, match=r"^folder = .* must be the path of a folder"):
            path_of_folder(place)
    with pytest.raises(ValueError, match=r"^folder = '' must be the path of a folder"):
        save_pretrained(model, "")
    assert list(tmp_path.iterdir()) == []


def test_of_a_compiled_model_the_model_within_is_saved(tmp_path, changed):
    save_pretrained(torch.compile(changed, backend="eager"), tmp_path / "compiled")
    assert torch.equal(latents(tmp_path / "compiled"), changed.trunk.latents)


def test_options_that_are_dataclasses_of_their_own_are_saved(tmp_path):
    """A bottleneck, and a rotary embedding with a tuple of axes; an unknown option within them is named."""
    axes, places = (Axis("x"), Axis("time", 2.0, 30.0)), (LatentAxis("x", 0.0, 1.0, 5),)
    encoder, bottleneck = EncoderConfig(rotary=Rotary(axes, share=1.0)), BottleneckConfig(channels=3, sample=False)
    config = Config(LatentsConfig(5, 16, places=places), encoder, ProcessorConfig(num_layers=1), bottleneck=bottleneck)
    model = PerceiverIO(Schema({"x": Numbers(count=2)}, {"y": Numbers()}), config).eval()
    save_pretrained(model, tmp_path / "model")
    loaded, x = from_pretrained(tmp_path / "model"), torch.ones(1, 2)
    assert loaded.config == config
    assert torch.equal(loaded(x)["y"], model(x)["y"])
    (tmp_path / "model" / "manifest.json").unlink()
    file = tmp_path / "model" / "model.json"
    text = file.read_text()
    for right, wrong, field in (
        ('"free_bits"', '"free_bit"', "bottleneck.free_bit"),
        ('"share"', '"shares"', "encoder.rotary.shares"),
        ('"max_wavelength": 30.0', '"max_wavelengths": 30.0', "encoder.rotary.axes.1.max_wavelengths"),
    ):
        file.write_text(text.replace(right, wrong))
        with pytest.raises(ValueError, match=rf"model\.json: {re.escape(field)}: unknown field; did you mean"):
            from_pretrained(tmp_path / "model")


def linked(place, folder):
    save_pretrained(from_pretrained(FROZEN), folder.parent / "other")
    place.symlink_to(folder.parent / "other")


def of_links(place, folder):
    save_pretrained(from_pretrained(FROZEN), folder.parent / "other")
    place.mkdir()
    for path in (folder.parent / "other").iterdir():
        (place / path.name).symlink_to(path)


@pytest.mark.parametrize(
    "make",
    [
        linked,
        of_links,
        lambda place, folder: place.symlink_to("nowhere"),
        lambda place, folder: place.write_text("mine"),
        lambda place, folder: place.mkdir(),
    ],
)
def test_what_only_has_the_name_of_a_save_in_progress_is_neither_loaded_nor_put_in_place(folder, changed, make):
    """Such an entry is reported and stays; a link is not followed."""
    before = latents(folder)
    make(folder / READY, folder)
    files = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=r"\.manifest\.ready was not saved here by us"):
        save_pretrained(changed, folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == files
    (folder / READY).unlink() if (folder / READY).is_symlink() or (folder / READY).is_file() else None
    if make is not of_links:  # a folder with a whole model is an interrupted save, which is loaded until the next save
        assert torch.equal(latents(folder), before)


def test_a_file_or_link_with_the_name_of_a_leftover_stays(folder, changed):
    (folder / ".model.abcdefgh.unfinished").write_text("mine")
    (folder / ".model.bcdefghi.unfinished").symlink_to(folder / "chapters")
    (folder / ".model.cdefghij.unfinished").mkdir()
    save_pretrained(changed, folder)
    assert torch.equal(latents(folder), changed.trunk.latents)
    left = sorted(path.name for path in folder.glob(".model.*"))
    assert left == [".model.abcdefgh.unfinished", ".model.bcdefghi.unfinished"]
    assert (folder / "chapters" / "model.json").exists()
    for name in (READY, ".model.abcdefgh.unfinished"):
        with pytest.raises(ValueError, match="a name that only unfinished saves have"):
            save_pretrained(changed, folder / "chapters" / name)


def without_manifest(folder):
    (folder / "manifest.json").unlink()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (foreign("README.md"), "README.md"),
        (foreign("model.safetensors"), "model.safetensors"),
        (foreign("manifest.json", '{"name": "a web page", "icons": []}'), "manifest.json"),
        (foreign("manifest.json", "{}"), "manifest.json"),
        (foreign("manifest.json", "no JSON"), "manifest.json"),
        (as_folder, "model.json"),
        (without_manifest, "model.safetensors"),
    ],
)
def test_a_file_of_others_with_a_name_of_ours_is_refused(folder, changed, change, named):
    change(folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=named) as caught:
        save_pretrained(changed, folder)
    assert len(str(caught.value).splitlines()) == 1
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert not list(folder.glob(".model*")) + list(folder.glob(READY))


def test_older_files_of_ours_go_unless_they_were_changed(tmp_path):
    def several(names):
        return lambda folder: [(folder / name).write_text(name) for name in names]

    write_folder(tmp_path / "folder", several(["a", "b", "c"]))
    (tmp_path / "folder" / "c").write_text("changed by its user")
    write_folder(tmp_path / "folder", several(["a", "d"]))
    assert sorted(os.listdir(tmp_path / "folder")) == ["a", "c", "d", "manifest.json"]
    check_folder(tmp_path / "folder")


def test_folders_of_every_kind(tmp_path, folder, changed, monkeypatch):
    """A link to a folder, a link to nothing yet, the working folder, permissions; a file is refused."""
    (tmp_path / "linked").symlink_to(folder)
    (tmp_path / "to-be").symlink_to(tmp_path / "new")
    folder.chmod(0o750)
    (folder / "model.safetensors").chmod(0o600)
    before = others(folder), folder.stat().st_ino
    save_pretrained(changed, tmp_path / "linked")
    assert (tmp_path / "linked").is_symlink()
    assert (others(folder), folder.stat().st_ino) == before
    assert [path.stat().st_mode & 0o777 for path in (folder, folder / "model.safetensors")] == [0o750, 0o600]
    save_pretrained(changed, tmp_path / "to-be")
    assert sorted(os.listdir(tmp_path / "new")) == OURS
    monkeypatch.chdir(folder)
    save_pretrained(from_pretrained(FROZEN), Path())
    assert torch.equal(latents(Path()), from_pretrained(FROZEN).trunk.latents)
    with pytest.raises(ValueError, match=r"thesis\.txt: is a file, not a folder"):
        save_pretrained(changed, folder / "thesis.txt")


def cut_off(number, act):
    """Kill `act`, in a forked process, before its n-th change to the disk; return False if it ends before."""
    pid = os.fork()
    if pid == 0:
        left = [number]

        def hook(event, arguments):
            writes = event != "open" or (arguments[2] or 0) & os.O_CREAT
            if event in CHANGES and writes:
                left[0] -= 1
                if left[0] < 0:
                    os._exit(9)

        code = 1
        try:
            sys.addaudithook(hook)
            act()
            code = 0
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, 9)
    return code == 9


def test_a_file_system_without_links(folder, changed, monkeypatch):
    def refuse(self, target):
        raise OSError("no links here")

    before = others(folder)
    monkeypatch.setattr(Path, "hardlink_to", refuse)
    save_pretrained(changed, folder)
    assert torch.equal(latents(folder), changed.trunk.latents)
    assert others(folder) == before


def test_a_save_that_is_cut_off_leaves_the_old_model_or_the_new_one(folder, model, changed):
    """Interrupted before each change to the disk; the next save works, and all other files are there."""
    before, number, newer = others(folder), 0, False
    names = {*before, *OURS}
    while cut_off(number, lambda: save_pretrained(changed, folder)):
        found = latents(folder)
        newer = newer or torch.equal(found, changed.trunk.latents)
        assert torch.equal(found, (changed if newer else model).trunk.latents)
        assert others(folder).items() >= before.items()
        cut_off(number // 2, lambda: save_pretrained(model, folder))  # interrupted in the same way
        save_pretrained(model, folder)
        assert {path.relative_to(folder).as_posix() for path in folder.rglob("*")} == names
        assert others(folder) == before
        number += 1
    assert newer
    assert number > 20


def test_only_what_is_ours_is_uploaded(folder, changed, monkeypatch):
    import huggingface_hub

    uploaded = {}

    class Api:
        def __init__(self, token=None):
            pass

        def create_repo(self, name, exist_ok):
            pass

        def upload_folder(self, repo_id, folder_path):
            uploaded.update({path.name: path.read_bytes() for path in Path(folder_path).rglob("*")})

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    # Refuse wrong names.
    for name in ("", None, 3, "noslash", "a/b/c", "../x", "a b/c", "-a/b", "a/" + "b" * 100):
        with pytest.raises(ValueError, match=r"^name = .* must be a hub repository owner/name"):
            check_repository(name)
    with pytest.raises(ValueError, match="must be a hub repository owner/name"):
        push_to_hub(changed, "noslash", folder.parent / "new")
    assert not (folder.parent / "new").exists()
    # Upload, and compare with the folder.
    push_to_hub(changed, "owner/model", folder)
    assert uploaded == {name: (folder / name).read_bytes() for name in OURS}
    manifest = json.loads(uploaded["manifest.json"])
    assert {name: entry["sha256"] for name, entry in manifest.items()} == {
        name: hashlib.sha256(uploaded[name]).hexdigest() for name in OURS if name != "manifest.json"
    }


def test_a_folder_in_which_others_put_something_is_not_removed(tmp_path):
    for name in ("ours", "mixed"):
        write_folder(tmp_path / name, lambda folder: (folder / "a").write_text("a"))
    (tmp_path / "mixed" / "notes.txt").write_text("mine")
    remove_folder(tmp_path / "ours")
    remove_folder(tmp_path / "mixed")
    sweep(tmp_path)
    (left,) = tmp_path.iterdir()
    assert left.name.startswith("mixed.kept.")
    assert (left / "notes.txt").read_text() == "mine"


def test_what_is_swept_has_a_name_that_only_we_give(tmp_path):
    for name in (".thesis.unfinished", ".my.notes.unfinished", ".recipe.yaml.abcd_123.unfinished"):
        (tmp_path / name).touch()
    shutil.copytree(FROZEN, tmp_path / ".step-00000001.zyxw9876.unfinished")
    sweep(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".my.notes.unfinished", ".thesis.unfinished"]


def test_a_table_replaces_a_file_and_nothing_else(tmp_path):
    """Through a link, the file behind it is replaced; folders and pipes are refused; permissions stay."""
    (tmp_path / "real.csv").write_text("old")
    (tmp_path / "real.csv").chmod(0o600)
    (tmp_path / "link.csv").symlink_to("real.csv")
    write_rows(tmp_path / "link.csv", [{"a": 1}])
    assert (tmp_path / "link.csv").is_symlink()
    assert (tmp_path / "real.csv").read_text() == "a\n1\n"
    assert (tmp_path / "real.csv").stat().st_mode & 0o777 == 0o600
    (tmp_path / "folder.csv").mkdir()
    os.mkfifo(tmp_path / "pipe.csv")
    for name in ("folder.csv", "pipe.csv"):
        with pytest.raises(ValueError, match=rf"{name}: not a file, and nothing"):
            write_rows(tmp_path / name, [{"a": 1}])
    assert (tmp_path / "pipe.csv").is_fifo()


@pytest.mark.parametrize("name", ["thesis.txt", "README.md"])
def test_a_list_of_files_that_another_program_wrote_is_refused(tmp_path, model, name):
    """The list has sizes and hashes as ours has, but the files that it names are not removed."""
    (tmp_path / name).write_text("years of work")
    entry = {"size": 13, "sha256": hashlib.sha256(b"years of work").hexdigest()}
    (tmp_path / "manifest.json").write_text(json.dumps({name: entry}))
    with pytest.raises(ValueError, match=r"manifest\.json was not saved here by us"):
        save_pretrained(model, tmp_path)
    assert (tmp_path / name).read_text() == "years of work"
    assert sorted(os.listdir(tmp_path)) == sorted([name, "manifest.json"])


def test_a_checkpoint_is_not_replaced_by_a_model(tmp_path):
    trained(small_records(), tmp_path, 1)
    (checkpoint,) = checkpoints(tmp_path)
    with pytest.raises(ValueError, match=r"step-00000001 is a checkpoint.*save elsewhere"):
        save_pretrained(from_pretrained(checkpoint), checkpoint)
    check_folder(checkpoint)


def test_saves_and_loads_at_once(tmp_path, model, changed):
    """Each is whole; none sees a partial state of another."""
    save_pretrained(model, tmp_path)

    def work(number):
        for _ in range(5):
            if number % 2:
                assert latents(tmp_path) is not None
            else:
                save_pretrained((model, changed)[number // 2], tmp_path)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    check_folder(tmp_path)
    assert sorted(os.listdir(tmp_path)) == OURS


def test_a_text_replaces_what_a_link_leads_to_and_only_files(tmp_path):
    (tmp_path / "link").symlink_to("text")
    os.mkfifo(tmp_path / "pipe")
    write_text(tmp_path / "link", "new")
    assert ((tmp_path / "link").is_symlink(), (tmp_path / "text").read_text()) == (True, "new")
    for name in ("pipe", "."):
        with pytest.raises(ValueError, match="not a file"):
            write_text(tmp_path / name, "new")
    assert (tmp_path / "pipe").is_fifo()


def test_an_error_of_the_disk_names_the_target_alone(tmp_path, model):
    with pytest.raises(OSError, match=r"File name too long: '[^']*'$"):
        save_pretrained(model, tmp_path / ("x" * 300))


def test_a_first_save_whose_name_is_not_on_the_disk_is_undone(model, tmp_path, monkeypatch):
    """Otherwise the same command would refuse the existing folder when repeated."""
    to_disk = durable_folder.to_disk

    def broken(path):
        if path == tmp_path and (tmp_path / "model").exists():
            raise OSError(errno.EIO, "Input/output error")
        to_disk(path)

    monkeypatch.setattr(durable_folder, "to_disk", broken)
    with pytest.raises(OSError, match="Input/output error"):
        save_pretrained(model, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []
