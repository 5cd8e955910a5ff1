"""Something-Something-v2: actions of hands with objects, 174 classes."""

from typing import ClassVar

import pyarrow as pa

from probe_datasets.clips import ClipConfig
from probe_datasets.formats.files import data_error
from probe_datasets.formats.ssv2 import find_annotations, find_videos, read_classes, read_clips
from probe_datasets.index import Listing
from probe_datasets.spec import DatasetSpec
from probe_datasets.video_files import VideoFiles

__all__ = ["SPEC", "SomethingSomethingV2"]

SPEC = DatasetSpec(
    name="ssv2",
    summary="Something-Something-v2: actions of hands with objects, many told by time alone",
    builder="probe_datasets.ssv2:SomethingSomethingV2",
    task="actions",
    splits=("train", "validation"),
    clip=ClipConfig(num_frames=17, stride=2, size=256, short="clamp"),
    expected={"train": 168_913, "validation": 24_777},
    labels=("action",),
    num_classes={"action": 174},
    layouts=(
        "20bn-something-something-v2/<id>.webm, videos/<id>.webm or <id>.webm, with "
        "something-something-v2-{train,validation,labels}.json there, in labels/ or annotations/",
        "the same with {train,validation,labels}.json",
    ),
    obtain="request it at https://www.qualcomm.com/developer/software/something-something-v-2-dataset"
    " and unpack the joined parts",
    licence="for academic research on the owner's terms; not to be redistributed",
    citation="Goyal et al., The 'something something' video database for learning and evaluating "
    "visual common sense, ICCV 2017",
)


class SomethingSomethingV2(VideoFiles):
    """Clips of 17 frames at stride 2; many videos are shorter, so their last frame is repeated.

    Never mirrored: classes tell left from right.

    Reference: From Image to Video, App. D.2.
    """

    spec: ClassVar[DatasetSpec] = SPEC
    evaluation_start = "centre"
    listed = pa.schema([("label", pa.int32())])

    def list_samples(self) -> Listing:
        """Every clip of the split's JSON file, whether its video is there or not.

        Raises:
            DataError: the annotations are not there or do not fit together, none of their videos is
                there, or a folder of videos cannot be listed.
        """
        classes = read_classes(find_annotations(self.root, "labels"))
        annotations = find_annotations(self.root, self.split)
        clips = read_clips(annotations, classes)
        videos = find_videos(self.root)
        if videos.keys().isdisjoint(clips.ids):
            problem = f"holds none of the {len(clips.ids)} videos of {annotations.name}"
            name = f"{clips.ids[0]}.webm"
            expected = f"files such as {name}, in 20bn-something-something-v2/, videos/ or the root"
            raise data_error(self.root, problem, expected, "move them there or link the folder")
        return Listing(
            layout=f"videos by id, annotations in {annotations.relative_to(self.root)}",
            rows=(
                {"sample_id": clip, "path": videos.get(clip), "label": label}
                for clip, label in zip(clips.ids, clips.labels.tolist(), strict=True)
            ),
            classes={"action": classes},
            total=len(clips.ids),
        )
