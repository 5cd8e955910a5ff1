"""Real and damaged files, read from `shared/data` beside the repository where that exists."""

import json
from pathlib import Path

import pytest
import torch

from probe_datasets import FolderDataset, VideoError, read_frames, scan_video
from probe_datasets.clips import ClipConfig
from probe_datasets.formats.files import DataError

VIDEOS = [
    "kinetics/SOX5yA1l24A.mp4",
    "kinetics/mmaction2_demo_arm_wrestling.mp4",
    "re10k/clips/0bf152ef84195293.mp4",
    "re10k/clips/0c9b371cc6225682.mp4",
    "re10k/clips/0f68374b76390082.mp4",
    "re10k/clips/2f25826f0d0ef09a.mp4",
    "re10k/clips/3f79dc32d575bcdc.mp4",
    "ssv2/166766.webm",
    "video_misc/01_dog.mp4",
    "video_misc/04_coffee.mp4",
    "video_misc/bikes.mp4",
    "video_misc/carphone_pristine.mp4",
]
DAMAGED = {
    "corrupt/bitflip.mp4": r"has \d+ corrupt frames of 327, the first is frame \d+;",
    "corrupt/empty.mp4": "is empty",
    "corrupt/text.mp4": "is a text file",
    "corrupt/trunc60.mp4": "is cut short: the box 'mdat' ends at byte 876717, .* has 533771;",
    "corrupt/trunc60.webm": "is cut short: the Segment ends at byte 147170, .* has 88302;",
    "corrupt/trunc60_faststart.mp4": "is cut short: the box 'mdat' ends at byte 889729",
    "video_misc/RATRACE_wave_f_nm_np1_fr_goo_37.avi": "is an AVI file.*packed B-frames",
    "images/dog1.jpg": "is a JPEG image",
    "images/rgb_pytorch.png": "is a PNG image",
}


def test_the_list_is_complete(shared: Path):
    expected = json.loads((shared / "expected" / "videos.json").read_text())
    assert {n for n in expected if not n.endswith(".avi")} == set(VIDEOS)


@pytest.mark.parametrize("name", VIDEOS)
def test_every_frame_is_read_right(shared: Path, name: str, backend: str):
    expected = json.loads((shared / "expected" / "videos.json").read_text())[name]
    path = shared / name
    info = scan_video(path, verify=backend == "pyav")  # once will do
    assert info.num_frames == expected["decoded_frames"]
    assert (info.codec, info.height, info.width) == (
        expected["codec"],
        expected["height"],
        expected["width"],
    )
    numerator, denominator = map(int, expected["avg_frame_rate"].split("/"))
    assert info.fps == pytest.approx(numerator / denominator, rel=0.002)
    # Some frames from the first to the last: all frames of all files take a minute.
    indices = sorted({*range(0, info.num_frames, 24), info.num_frames - 1})
    means = torch.cat(
        [
            read_frames(path, indices[k : k + 16], backend=backend).double().mean(dim=(2, 3))
            for k in range(0, len(indices), 16)
        ]
    )
    truth = torch.tensor([expected["mean_rgb_per_frame"][i] for i in indices]).double()
    # The check values come from another FFmpeg build, rounded to 0.01.
    assert (means - truth).abs().max() < 0.5


@pytest.mark.parametrize("name", ["ssv2/166766.webm", "kinetics/SOX5yA1l24A.mp4"])
def test_backends_agree_to_the_bit(shared: Path, name: str, torchcodec: str):
    count = scan_video(shared / name, verify=False).num_frames
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        indices = torch.randint(count, (6,), generator=generator).tolist()
        ours = read_frames(shared / name, indices, backend="pyav")
        assert torch.equal(ours, read_frames(shared / name, indices, backend=torchcodec))


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_and_foreign_files_are_refused(shared: Path, name: str):
    with pytest.raises(VideoError, match=DAMAGED[name]) as caught:
        scan_video(shared / name)
    message = str(caught.value)
    assert message.startswith(str(shared / name))
    assert "\n" not in message


def test_an_avi_renamed_to_mp4_is_still_one(shared: Path, tmp_path: Path):
    path = tmp_path / "clip.mp4"
    path.write_bytes((shared / "video_misc" / "v_SoccerJuggling_g23_c01.avi").read_bytes())
    with pytest.raises(VideoError, match="is an AVI file"):
        read_frames(path, [0])


def test_a_folder_of_real_videos(shared: Path):
    clip = ClipConfig(num_frames=8, stride=2, size=64)
    dataset = FolderDataset(shared / "re10k" / "clips", "all", clip=clip)
    assert len(dataset) == 5
    assert dataset[0]["video"].shape == (3, 8, 64, 64)
    with pytest.raises(DataError, match=r"6 of 6 samples .* first: .*bitflip\.mp4"):
        FolderDataset(shared / "corrupt", "all", clip=clip, workers=1)
    with pytest.raises(DataError, match="gives no sample of split 'all': 0 are missing and 6"):
        FolderDataset(shared / "corrupt", "all", clip=clip, on_error="skip", workers=1)
