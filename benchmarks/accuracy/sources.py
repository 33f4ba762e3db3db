"""Files of public repositories at pinned commits: photos, sample files, golden cases.

Natural images with many objects and files of many types lie in no Python package, and the study
must not depend on a model hub. Public repositories of detectors and file-type tools bring both as
examples. They are read from bare git copies, `FOLDER/owner+name.git`; a copy that is missing is
fetched, its one commit only. Nothing of them is committed here; their licences are their own.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

COMMITS = {
    "Linzaer/Ultra-Light-Fast-Generic-Face-Detector-1MB": (
        "dffdddda9794a50607cba8f318507a28c1c27cab"
    ),
    "timesler/facenet-pytorch": "787da06156087cd6b616fe6608213722bddc30cd",
    "ipazc/mtcnn": "14c9b0590ad7b663318c09e1590e87b733a290e1",
    "CMU-Perceptual-Computing-Lab/openpose": "5c5d96523ef917bd30301245fdc8343937cae48d",
    "facebookresearch/Detectron": "04155a01a6ea68f22ac27c79a822066457941ece",
    "balancap/SSD-Tensorflow": "e0e3104d3a2cc5d830fad041d4e56ebcf84caac3",
    "pjreddie/darknet": "f6afaabcdf85f77e7aff2ec55c020c0e297c77f9",
    "WongKinYiu/yolov7": "a207844b1ce82d204ab36d87d496728d3d2348e7",
    "eriklindernoren/PyTorch-YOLOv3": "1d621c8489e22c76ceb93bb2397ac6c8dfb5ceb7",
    "serengil/deepface": "243209fd7b46ecdecf72665cc25219f6e8181f25",
    "justadudewhohacks/face-api.js": "a86f011d72124e5fb93e59d5c4ab98f699dd5c9c",
    "jwyang/faster-rcnn.pytorch": "f9d984d27b48a067b29792932bcb5321a39c1f09",
    "ayooshkathuria/pytorch-yolo-v3": "fbb4ef98d5a598f4c8eded6d618a599b7d289e2f",
    "PaddlePaddle/PaddleDetection": "666f597fd00d3157e84dd9fb2dd3f40bf9918ebc",
    "google/magika": "b141dc37f004fc922a6281a417035560b4c7aae6",
    "github-linguist/linguist": "b45dbe9b2825a43285bcd035861be91cc0a7299e",
    "sindresorhus/file-type": "2c54d066efdf7511e42fa9f5e4cd160b67fb51e9",
}


class Sources:
    """The repositories of `COMMITS`, read from (or cloned into) one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, repo: str, path: str) -> bytes:
        """One file. Raises: SystemExit where it can't be had."""
        return self._git(repo, "show", f"{COMMITS[repo]}:{path}")

    def files(self, repo: str, under: str, most_bytes: int = 2 << 20) -> list[str]:
        """The paths below a folder of files that are not larger, sorted."""
        listed = self._git(repo, "ls-tree", "-r", "-l", "-z", COMMITS[repo], f"{under}/")
        paths = []
        for row in listed.decode("utf-8", "surrogateescape").rstrip("\0").split("\0"):
            facts, path = row.split("\t", 1)
            size = facts.split()[3]
            if size.isdigit() and int(size) <= most_bytes:
                paths.append(path)
        return sorted(paths)

    def _git(self, repo: str, *words: str) -> bytes:
        done = subprocess.run(
            ["git", "--git-dir", str(self._copy(repo)), *words], capture_output=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"{repo}: git {words[0]} {words[-1]}: {done.stderr.decode().strip()}")
        return done.stdout

    def _copy(self, repo: str) -> Path:
        path = self._folder / (repo.replace("/", "+") + ".git")
        if not path.exists():
            path.mkdir(parents=True)
            address = f"https://github.com/{repo}.git"
            fetch = ["fetch", "--quiet", "--depth=1", address, COMMITS[repo]]
            for words in (["init", "--quiet", "--bare"], fetch):
                if subprocess.run(["git", "-C", str(path), *words], check=False).returncode:
                    shutil.rmtree(path)
                    raise SystemExit(f"{repo}: could not be fetched; put a bare copy at {path}")
        return path
