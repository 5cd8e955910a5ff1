"""ImageNet as people keep it, written here from the descriptions of the layouts."""

import json
import os
import runpy
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from probe_datasets.clips import ClipConfig
from probe_datasets.formats.files import DataError
from probe_datasets.formats.imagenet import official_wnids
from probe_datasets.imagenet import SPEC, ImageNet

HERE = Path(__file__).parent
WRITE = SimpleNamespace(**runpy.run_path(str(HERE / "picture_writers.py")))
KIT = SimpleNamespace(**runpy.run_path(str(HERE / "test_formats_imagenet_devkit.py")))
CLIP = ClipConfig(num_frames=2, size=32)
TENCH, GOLDFISH, TISSUE = "n01440764", "n01443537", "n15075141"
# Classes of the validation pictures in the order of their names, each fifty times.
TRUTH = [official_wnids()[(7 * i + 3) % 1000] for i in range(50_000)]
SHOWN = (1, 2, 50_000)  # pictures that are there


def picture_name(number: int) -> str:
    return f"ILSVRC2012_val_{number:08d}"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three validation pictures in one folder."""
    folder = tmp_path_factory.mktemp("pictures")
    for i, number in enumerate(SHOWN):
        WRITE.write_picture(folder / f"{picture_name(number)}.JPEG", width=80 + 8 * i)
    return folder


def write_layout(root: Path, layout: str, pictures: Path) -> Path:
    """A validation split in one of the layouts, with three of its pictures."""
    if layout == "folders":
        for number in SHOWN:
            name = f"{picture_name(number)}.JPEG"
            target = root / "val" / TRUTH[number - 1] / name
            target.parent.mkdir(parents=True)
            shutil.copy2(pictures / name, target)
        return root
    folder = {"kit": "ILSVRC2012_img_val", "ids": "val", "kaggle": "ILSVRC/Data/CLS-LOC/val"}
    shutil.copytree(pictures, root / folder[layout])
    if layout == "ids":
        (root / "validation_labels.txt").write_text("".join(f"{wnid}\n" for wnid in TRUTH))
    elif layout == "kaggle":
        lines = (f"{picture_name(i)},{w} 1 2 3 4 \n" for i, w in enumerate(TRUTH[:50], start=1))
        lines = [*lines, f"{picture_name(50_000)},{TRUTH[-1]} 1 2 3 4 {TRUTH[-1]} 5 6 7 8\n"]
        text = "ImageId,PredictionString\n" + "".join(sorted(lines, reverse=True))
        (root / "LOC_val_solution.csv").write_text(text)
    else:
        data = root / "ILSVRC2012_devkit_t12" / "data"
        data.mkdir(parents=True)
        order = sorted(official_wnids(), key=lambda wnid: wnid[::-1])
        inner = (1001, "n00001740", "entity", 3, [5, 6, 7])
        leaves = [(i + 1, wnid, "a name", 0, []) for i, wnid in enumerate(order)]
        KIT.write_meta(data / "meta.mat", [*leaves, inner])
        number = {wnid: i for i, wnid in enumerate(order, start=1)}
        lines = "".join(f"{number[wnid]}\n" for wnid in TRUTH)
        (data / "ILSVRC2012_validation_ground_truth.txt").write_text(lines)
    return root


def write_train(root: Path) -> Path:
    """Two pictures of each of three classes."""
    for wnid in (TISSUE, TENCH, GOLDFISH):
        for i in (10, 9):
            WRITE.write_picture(root / "train" / wnid / f"{wnid}_{i}.JPEG")
    return root


def test_the_list_of_classes_is_complete():
    wnids = official_wnids()
    assert (wnids[0], wnids[65], wnids[999]) == (TENCH, "n01751748", TISSUE)
    assert list(wnids) == sorted(set(wnids))


def test_the_list_of_classes_is_the_official_one(shared: Path):
    wnids = official_wnids()
    assert wnids == tuple((shared / "imagenet_meta" / "labels.txt").read_text().split())
    truth = json.loads((shared / "imagenet_meta" / "imagenet_class_index.json").read_text())
    assert {i: wnid for i, wnid in enumerate(wnids)} == {int(i): truth[i][0] for i in truth}


def test_a_class_folder_has_the_index_that_its_class_has_among_all(tmp_path: Path):
    dataset = ImageNet(write_train(tmp_path), "train", clip=CLIP)
    names = [dataset.sample_id(i) for i in range(len(dataset))]
    assert names == [f"{w}/{w}_{i}.JPEG" for w in (TENCH, GOLDFISH, TISSUE) for i in (10, 9)]
    assert [dataset[i]["labels"] for i in (0, 2, 5)] == [{"class": i} for i in (0, 1, 999)]
    assert dataset.classes["class"][999] == TISSUE
    coverage = dataset.coverage
    assert (coverage.expected, coverage.found, coverage.missing) == (1_281_167, 6, 1_281_161)
    with pytest.raises(DataError, match="holds no folder of val pictures; expected val or "):
        ImageNet(tmp_path, "validation")


@pytest.mark.parametrize("layout", ["folders", "ids", "kaggle", "kit"])
def test_every_layout_gives_the_same_samples(tmp_path: Path, pictures: Path, layout: str):
    dataset = ImageNet(write_layout(tmp_path, layout, pictures), "validation", clip=CLIP)
    found = {dataset.sample_id(i): dataset[i]["labels"]["class"] for i in range(len(dataset))}
    assert found == {
        f"{TRUTH[n - 1]}/{picture_name(n)}.JPEG": official_wnids().index(TRUTH[n - 1])
        for n in SHOWN
    }
    coverage = dataset.coverage
    assert (coverage.expected, coverage.missing, coverage.failed) == (50_000, 49_997, 0)
    plain = write_layout(tmp_path / "again", "folders", pictures)
    listed = {name: dataset.row(i)["size"] for i, name in enumerate(found)}
    again = ImageNet(plain, "validation", clip=CLIP)
    assert listed == {again.sample_id(i): again.row(i)["size"] for i in range(3)}
    assert sorted(dataset[0]) == ["labels", "sample_id", "video"]


def test_pictures_without_a_list_of_classes_are_not_guessed(tmp_path: Path, pictures: Path):
    shutil.copytree(pictures, tmp_path / "val")
    with pytest.raises(DataError, match="without a list of their classes; expected one of LOC_val"):
        ImageNet(tmp_path, "validation")
    truth = tmp_path / "ILSVRC2012_validation_ground_truth.txt"
    truth.write_text("".join(f"{i % 1000 + 1}\n" for i in range(50_000)))
    with pytest.raises(DataError, match=r"whose meta\.mat is missing"):
        ImageNet(tmp_path, "validation")
    (tmp_path / "validation_labels.txt").write_text(
        "".join(f"{wnid}\n" for wnid in TRUTH).replace(TISSUE, "n99999999")
    )
    with pytest.raises(DataError, match=r"validation_labels\.txt: names the class n99999999"):
        ImageNet(tmp_path, "validation")
    shutil.copytree(pictures, tmp_path / "train")
    with pytest.raises(DataError, match="holds no class folders such as n01440764"):
        ImageNet(tmp_path, "train")
    (tmp_path / "train" / "n99999999").mkdir()
    with pytest.raises(DataError, match="class folder n99999999, which is none of ImageNet-1k's"):
        ImageNet(tmp_path, "train")


def test_names_of_classes(tmp_path: Path, shared: Path):
    write_train(tmp_path)
    mapping = tmp_path / "LOC_synset_mapping.txt"
    mapping.write_text(f"{TENCH} tench, Tinca tinca\n{GOLDFISH} crane\n{TISSUE} crane\n")
    names = ImageNet(tmp_path, "train").classes["class"]
    assert names[:2] == ("tench, Tinca tinca", f"crane ({GOLDFISH})")
    assert names[2] == official_wnids()[2]
    assert len(set(names)) == 1000
    mapping.unlink()
    shutil.copy(shared / "imagenet_meta" / "imagenet_class_index.json", tmp_path)
    names = ImageNet(tmp_path, "train").classes["class"]
    assert (names[0], names[999], len(set(names))) == ("tench", "toilet tissue", 1000)
    (tmp_path / "imagenet_class_index.json").write_text(json.dumps({"0": [TENCH]}))
    with pytest.raises(DataError, match=r"class_index\.json: has"):
        ImageNet(tmp_path, "train")


def test_evaluation_keeps_the_central_square_and_training_turns_parts(tmp_path: Path):
    write_train(tmp_path)
    still = ImageNet(tmp_path, "train", clip=CLIP, augment=False)
    video = still[0]["video"]
    assert video.shape == (3, 2, 32, 32)
    for row in (1, 16, 30):  # the square without its blue margins
        assert WRITE.is_colour(video, row, 1, WRITE.RED)
        assert WRITE.is_colour(video, row, 30, WRITE.GREEN)
    assert torch.equal(video, still.clip(0, draw=5)["video"])
    train = ImageNet(tmp_path, "train", clip=CLIP, seed=3)
    videos = [train.clip(0, draw)["video"] for draw in range(40)]
    assert torch.equal(videos[7], train.clip(0, 7)["video"])
    assert torch.equal(
        videos[7], ImageNet(tmp_path, "train", clip=CLIP, seed=3).clip(0, 7)["video"]
    )
    assert len({v.numpy().tobytes() for v in videos}) > 35
    assert all(torch.equal(v[:, 0], v[:, 1]) for v in videos)
    # Red lies to the left of green; in about half of the draws that show both it does not.
    turned = []
    for video in videos:
        red, green = (video[c, 0] - video[1 - c, 0] > 0.8 for c in (0, 1))
        columns = torch.arange(32.0).expand(32, 32)
        if red.sum() > 30 and green.sum() > 30:
            turned.append(bool(columns[red].mean() > columns[green].mean()))
    assert len(turned) > 10
    assert 0.2 < sum(turned) / len(turned) < 0.8


def test_whatever_a_file_holds_comes_out_red_green_and_blue(tmp_path: Path):
    kinds = {"rgb": ("RGB", "JPEG"), "cmyk": ("CMYK", "JPEG"), "png": ("RGB", "PNG")}
    kinds |= {"palette": ("P", "PNG"), "alpha": ("RGBA", "PNG"), "grey": ("L", "JPEG")}
    for name, (mode, kind) in kinds.items():
        WRITE.write_picture(tmp_path / "val" / TENCH / f"{name}.JPEG", mode=mode, format=kind)
    dataset = ImageNet(tmp_path, "validation", clip=CLIP)
    for i in range(len(dataset)):
        example = dataset[i]
        assert example["video"].shape == (3, 2, 32, 32)
        if example["sample_id"] == f"{TENCH}/grey.JPEG":
            assert torch.equal(example["video"][0], example["video"][2])
        else:
            assert WRITE.is_colour(example["video"], 16, 2, WRITE.RED), example["sample_id"]


def test_real_pictures_and_damaged_ones(tmp_path: Path, shared: Path):
    folder = tmp_path / "val" / TENCH
    shutil.copytree(shared / "images", folder)
    good = ImageNet(tmp_path, "validation", clip=CLIP)
    names = [good.sample_id(i) for i in range(len(good))]
    assert len(names) == 14
    assert all(good[i]["video"].shape == (3, 2, 32, 32) for i in range(14))
    damaged = sorted((shared / "images" / "damaged_jpeg").glob("*.jpg"))
    for path in damaged:
        shutil.copy(path, folder / f"damaged_{path.name}")
    dataset = ImageNet(tmp_path, "validation", clip=CLIP, on_error="skip")
    assert len(dataset) == 14 + len(damaged)
    failed = [x for x in map(dataset.__getitem__, range(len(dataset))) if "problem" in x]
    assert failed
    assert all("damaged" in x["sample_id"] for x in failed)
    assert all(x["sample_id"].rpartition("/")[2] in x["problem"] for x in failed)


def test_bad_pictures_by_policy(tmp_path: Path):
    write_train(tmp_path)
    cut = tmp_path / "train" / TENCH / f"{TENCH}_10.JPEG"
    cut.write_bytes(cut.read_bytes()[:400])
    raising = ImageNet(tmp_path, "train", clip=CLIP)
    with pytest.raises(DataError, match=rf"{TENCH}_10\.JPEG: "):
        raising[0]
    assert raising[1]["sample_id"] == f"{TENCH}/{TENCH}_9.JPEG"
    cut.write_bytes(b"")
    with pytest.raises(DataError, match="1 of 6 samples of split 'train' cannot be used"):
        ImageNet(tmp_path, "train")
    skipping = ImageNet(tmp_path, "train", clip=CLIP, on_error="skip")
    coverage = skipping.coverage
    assert (coverage.found, coverage.failed, coverage.missing) == (5, 1, 1_281_161)
    assert [reason[0] for reason in coverage.reasons] == [f"{TENCH}/{TENCH}_10.JPEG"]


def test_folders_may_be_links_and_others_are_counted(tmp_path: Path):
    write_train(tmp_path / "store")
    (tmp_path / "data" / "train" / "notes").mkdir(parents=True)
    for wnid in (TENCH, TISSUE):
        os.symlink(tmp_path / "store" / "train" / wnid, tmp_path / "data" / "train" / wnid)
    WRITE.write_picture(tmp_path / "data" / "train" / "loose.JPEG")
    dataset = ImageNet(tmp_path / "data", "train", clip=CLIP)
    assert len(dataset) == 4
    assert dataset.coverage.ignored == 2
    assert dataset[3]["labels"] == {"class": 999}


def test_the_index_follows_the_folder(tmp_path: Path, pictures: Path):
    write_layout(tmp_path, "folders", pictures)
    assert len(ImageNet(tmp_path, "validation")) == 3
    (tmp_path / "val").rename(tmp_path / "validation")
    renamed = ImageNet(tmp_path, "validation", clip=CLIP)
    assert renamed[0]["video"].shape == (3, 2, 32, 32)
    WRITE.write_picture(tmp_path / "validation" / TENCH / "new.JPEG")
    assert len(ImageNet(tmp_path, "validation")) == 4
    WRITE.write_picture(tmp_path / "train" / TENCH / "new.JPEG")
    assert len(ImageNet(tmp_path, "validation")) == 4


def test_the_record_builds_the_dataset():
    assert SPEC.load_builder() is ImageNet
    assert (SPEC.clip.num_frames, SPEC.clip.size) == (17, 256)
