"""Photos for the detectors, and random views of them.

Every second photo of a list is for calibration, the others for the evaluation; the many photos of
`MORE_FACES` and `MORE_OBJECTS` are for calibration alone. No photo is in both: what looks like one
of the evaluation's is left out of the calibration's.
"""

from __future__ import annotations

import io
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sources import Sources

_FACES = "Linzaer/Ultra-Light-Fast-Generic-Face-Detector-1MB"
_POSE = "CMU-Perceptual-Computing-Lab/openpose"
_ROADS = "facebookresearch/Detectron"
_SSD = "balancap/SSD-Tensorflow"


def _coco(*numbers: int) -> list[tuple[str, str]]:
    return [(_POSE, f"examples/media/COCO_val2014_{n:012d}.jpg") for n in numbers]


def _faces(*numbers: int) -> list[tuple[str, str]]:
    return [(_FACES, f"imgs/{n}.jpg") for n in numbers]


def _demo(*names: str) -> list[tuple[str, str]]:
    return [(_SSD, f"demo/{name}.jpg") for name in names]


_PEOPLE = [
    ("eriklindernoren/PyTorch-YOLOv3", "data/samples/messi.jpg"),
    (_SSD, "demo/000001.jpg"),
    ("WongKinYiu/yolov7", "inference/images/zidane.jpg"),
    ("WongKinYiu/yolov7", "inference/images/image1.jpg"),
    ("WongKinYiu/yolov7", "inference/images/image2.jpg"),
]

FACES = [
    *_faces(1, 10, 11, 12, 13, 15, 16, 17, 18, 19, 2, 20, 21, 23, 24, 25, 26, 27, 3, 5, 6, 8, 9),
    (_FACES, "masked_face/imgs/img3.jpg"),
    (_FACES, "masked_face/imgs/img5.jpeg"),
    (_FACES, "masked_face/imgs/img8.jpeg"),
    ("timesler/facenet-pytorch", "data/multiface.jpg"),
    ("timesler/facenet-pytorch", "data/test_images/angelina_jolie/1.jpg"),
    ("timesler/facenet-pytorch", "data/test_images/kate_siegel/1.jpg"),
    ("timesler/facenet-pytorch", "data/test_images/paul_rudd/1.jpg"),
    ("timesler/facenet-pytorch", "data/test_images/shea_whigham/1.jpg"),
    ("ipazc/mtcnn", "resources/ivan.jpg"),
    *_coco(241, 294, 328, 395, 428, 459, 536, 623),
    *_PEOPLE,
]
"""Photos with faces; drawings and collages of the same folders are left out."""

OBJECTS = [
    *_coco(192, 241, 257, 294, 328, 338, 357, 360, 395, 415),
    *_coco(428, 459, 474, 488, 536, 544, 564, 569, 589, 623),
    *[
        (_ROADS, f"demo/{name}_k.jpg")
        for name in (
            "15673749081_767a7fa63a",
            "16004479832_a748d55f21",
            "17790319373_bd19b24cfc",
            "18124840932_e42b3e377c",
            "19064748793_bb942deea1",
            "24274813513_0cfd2ce6d0",
            "33823288584_1d21cf0a26",
            "33887522274_eebd074106",
            "34501842524_3c858b3080",
        )
    ],
    *_demo("000002", "000003", "000004", "000006", "000008", "000010", "000022"),
    *_demo("eagle", "horses", "person", "street"),
    *[("pjreddie/darknet", f"data/{name}.jpg") for name in ["dog", "giraffe", "kite"]],
    ("WongKinYiu/yolov7", "inference/images/bus.jpg"),
    ("WongKinYiu/yolov7", "inference/images/image3.jpg"),
    ("eriklindernoren/PyTorch-YOLOv3", "data/samples/room.jpg"),
    *_PEOPLE,
    *_faces(12, 13, 15, 18, 23, 3, 5, 6),
]
"""Photos with objects of COCO's classes. Detectors trained on COCO have seen some of them, which
does not matter where the dense model's own boxes are the reference."""


MORE_OBJECTS = (
    ("jwyang/faster-rcnn.pytorch", "images"),
    ("ayooshkathuria/pytorch-yolo-v3", "imgs"),
    ("PaddlePaddle/PaddleDetection", "demo"),
)
"""Folders of photos of objects, some thirty."""
MORE_FACES = (
    ("serengil/deepface", "tests/unit/dataset"),
    ("justadudewhohacks/face-api.js", "examples/images"),
    *MORE_OBJECTS,
)
"""Folders of photos of one to many people, some seventy, and of objects."""


class Split(NamedTuple):
    """RGB photos `[H, W, 3]` uint8."""

    calibration: list[NDArray[np.uint8]]
    evaluation: list[NDArray[np.uint8]]


def photos(
    sources: Sources,
    listed: list[tuple[str, str]],
    more: tuple[tuple[str, str], ...] = (),
    longest: int = 1600,
) -> Split:
    """The listed photos, and for calibration those of the folders `more` = (repository, folder);
    shrunk to at most `longest` pixels a side."""
    read = [_photo(sources, repo, path, longest) for repo, path in listed]
    calibration, evaluation = read[::2], read[1::2]
    known = [_thumbnail(photo) for photo in evaluation]
    for repo, folder in more:
        for path in sources.files(repo, folder, most_bytes=4 << 20):
            if not path.lower().endswith((".jpg", ".jpeg")):
                continue
            photo = _photo(sources, repo, path, longest)
            small = _thumbnail(photo)
            if all(np.mean(small * other) < SAME_PHOTO for other in known):
                calibration.append(photo)
    return Split(calibration, evaluation)


SAME_PHOTO = 0.9
"""Correlation of two 16 x 16 thumbnails from which on two photos are taken for one."""


def _photo(sources: Sources, repo: str, path: str, longest: int) -> NDArray[np.uint8]:
    image = Image.open(io.BytesIO(sources.read(repo, path))).convert("RGB")
    image.thumbnail((longest, longest), Image.Resampling.BILINEAR)
    return np.asarray(image)


def _thumbnail(photo: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Grey `[16, 16]` of mean 0 and variance 1."""
    grey = Image.fromarray(photo).convert("L").resize((16, 16), Image.Resampling.BOX)
    values = np.asarray(grey, np.float64)
    return (values - values.mean()) / max(values.std(), 1e-9)


def views(
    pictures: list[NDArray[np.uint8]], count: int, seed: int, aspect: tuple[float, float]
) -> list[NDArray[np.uint8]]:
    """`count` random views, as many of each photo: a window of 0.45 to 1 of the largest one whose
    width/height lies in `aspect`, mirrored or not, brightness times 0.6 to 1.4 and contrast times
    0.7 to 1.3. The order is random, so that the first n are of all photos."""
    rng = np.random.RandomState(seed)
    out = []
    for number in rng.permutation(count) % len(pictures):
        picture = pictures[number]
        height, width = picture.shape[:2]
        ratio = rng.uniform(*aspect)
        size = rng.uniform(0.45, 1.0)
        w = max(16, int(min(width, height * ratio) * size))
        h = max(16, int(min(height, width / ratio) * size))
        top, left = rng.randint(0, max(1, height - h)), rng.randint(0, max(1, width - w))
        view = picture[top : top + h, left : left + w].astype(np.float32)
        if rng.uniform() < 0.5:
            view = view[:, ::-1]
        brightness, contrast = rng.uniform(0.6, 1.4), rng.uniform(0.7, 1.3)
        mean = view.mean()
        view = ((view - mean) * contrast + mean) * brightness
        out.append(np.clip(view, 0, 255).astype(np.uint8))
    return out


def resized(view: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """To exactly `width` x `height`, `[height, width, 3]`."""
    return np.asarray(Image.fromarray(view).resize((width, height), Image.Resampling.BILINEAR))


def letterboxed(view: NDArray[np.uint8], size: int, fill: int = 114) -> NDArray[np.uint8]:
    """Shrunk or enlarged to fit `size` x `size`, in the upper left corner, the rest `fill`."""
    height, width = view.shape[:2]
    scale = min(size / height, size / width)
    w, h = max(1, int(width * scale)), max(1, int(height * scale))
    out = np.full((size, size, 3), fill, np.uint8)
    out[:h, :w] = resized(view, w, h)
    return out
