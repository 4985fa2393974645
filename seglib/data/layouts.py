"""Where the images of an annotation file lie, in any of the usual layouts, and a hash of all that a data set is.

A dry run of a grid imports this file: no NumPy.
"""

import difflib
import json
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from seglib.data.sources import hash_annotations, open_source
from seglib.errors import InputError
from seglib.files import hash_files, hash_text

TRUST_LINKS = "SEGLIB_TRUST_LINKS"  # folders, divided as in PATH, into which links in a data folder may lead
IMAGE_FOLDERS = {"images", "image", "imgs", "img", "jpegimages", "data", "photos", "default"}
# words in names of folders that have no photographs
_NO_IMAGES = {"annotation", "label", "mask", "segmentationclass", "segmentationobject", "gt", "gtfine"}
_ALIKE = {"valid": "val", "validation": "val", "training": "train", "testing": "test"}
_UPLOADED = re.compile(r"(?<![^/\\])[0-9a-f]{8}-(?=[^/\\]*$)")  # what Label Studio puts before an uploaded file's name
_NEAREST_NAMES = 20_000  # of a folder with more, only the same name elsewhere or with another ending is looked for


class ImageFinder:
    """Finds the images that an annotation file names; where the folder's content changed, make another.

    A name is a path seen from `data_dir`; where nothing lies there, from the file's own folder; and then from any folder
    in these two, as long as one fits best: first one that is called like the file (`annotations/instances_train2017.json`:
    `train2017`), then one for images (`images`, `JPEGImages`, ...), never one for masks. A name that is found nowhere is
    compared without regard to upper and lower case, Unicode form (NFC, NFD), backslashes and percent-encoding. Of a path that
    leads out of the folder the name alone is looked for, and the mark that Label Studio puts before names may be missing.

    Parameters
    ----------
    data_dir : a folder
    json_name : the annotation file, seen from `data_dir`
    """

    def __init__(self, data_dir: str | Path, json_name: str | Path):
        self.root = os.path.realpath(data_dir)
        self.beside = os.path.dirname(os.path.realpath(os.path.join(self.root, json_name)))
        trusted = [each for each in os.environ.get(TRUST_LINKS, "").split(os.pathsep) if each]
        self.trusted = [self.root, self.beside, *(os.path.realpath(os.path.expanduser(each)) for each in trusted)]
        self.words = _split_words(Path(json_name).stem) - _NO_IMAGES
        self.guesses = 0

    def find(self, name: str) -> tuple[str, str]:
        """The real path of an image, and "" or what is wrong, as `verify_coco` calls it.

        That is "missing-image" or "ambiguous-image", with the path where the image should be, or "outside-folder" with "".
        """
        name = name.rpartition("?d=")[2]  # Label Studio's /data/local-files/?d=images/a.jpg
        if os.path.isabs(name) or "\0" in name:
            return "", "outside-folder"
        for folder in dict.fromkeys((self.root, self.beside)):
            path = os.path.realpath(os.path.join(folder, name))
            if not self._may_read(path):
                # by a tool: ../../label-studio/data/a.jpg; no link
                is_spelt = os.path.normpath(name).startswith(os.pardir)
                found = self._list_readable(os.path.basename(name)) if is_spelt else []
                return (found[0], "") if len(found) == 1 else ("", "outside-folder")
            if os.path.isfile(path):
                return path, ""
        found = self._list_readable(name)
        if len(found) == 1:
            return found[0], ""
        return os.path.realpath(os.path.join(self.root, name)), "ambiguous-image" if found else "missing-image"

    def _list_readable(self, name: str) -> list[str]:
        """What fits a name that leads nowhere; if nothing does, without Label Studio's mark."""
        found = [path for path in self._find_elsewhere(name) if self._may_read(path)]
        return found or [path for path in self._find_elsewhere(_UPLOADED.sub("", name)) if self._may_read(path)]

    def explain(self, name: str) -> str:
        """What was required of a name that has a problem, what arrived, and the nearest file."""
        if "\0" in name:
            return "a file name must be a path, got a NUL character in it"
        path = os.path.realpath(os.path.join(self.root, name))
        problem = self.find(name)[1]
        if problem == "outside-folder":
            link = self._find_link(name)
            trust = f" (to read what links lead to: {TRUST_LINKS}={link})" if link else ""
            return f"an image's path must stay inside the data folder, got one that leads to {path}{trust}"
        if problem == "ambiguous-image":
            found = sorted(os.path.relpath(each, self.root) for each in self._find_elsewhere(name))
            return f"one file must fit the name, got {len(found)}: {', '.join(found[:4])}"
        if os.path.exists(path):
            got = "a folder" if os.path.isdir(path) else "a pipe or a device"
            return f"it must be a file, got {got} at {path}"
        nearest = self._find_nearest(name)
        return f"the file must exist, got none at {path}" + (f"; the nearest is {nearest}" if nearest else "")

    def _may_read(self, path: str) -> bool:
        return any(path == folder or path.startswith(os.path.join(folder, "")) for folder in self.trusted)

    def _find_link(self, name: str) -> str:
        """The folder into which a link leads out of the data folder, "" where none does."""
        path = self.root
        for part in "" if os.path.isabs(name) else name.split(os.sep):
            path = os.path.join(path, part)
            if os.path.islink(path) and not self._may_read(target := os.path.realpath(path)):
                return target if os.path.isdir(target) else os.path.dirname(target)
        return ""

    def _find_elsewhere(self, name: str) -> list[str]:
        """The real paths that fit a name best: more than one where that does not decide."""
        wanted, best, found = _simplify(name), None, set()
        for path, simple in self._files.get(wanted.rpartition("/")[2], ()):
            if not f"/{simple}".endswith(f"/{wanted}"):
                continue
            rank = self._rank(path, simple[: -len(wanted)].strip("/"), name)
            if rank is not None and (best is None or rank <= best):
                found = {os.path.realpath(path)} | (found if rank == best else set())
                best = rank
        return [*found]

    def _rank(self, path: str, folder: str, name: str) -> tuple | None:
        """How well a file fits, lower is better; `folder`: the simple path of the folder that the name is seen from."""
        parts = folder.split("/")
        words = set().union(*map(_split_words, parts))
        is_own = bool(words & self.words)
        if "panoptic" in words or (words & _NO_IMAGES and not is_own and not IMAGE_FOLDERS & set(parts)):
            return None
        place = os.path.join(self.root, path)
        inside = self.beside != self.root and place.startswith(os.path.join(self.beside, ""))
        return not path.endswith(name), bool(folder), not inside, not is_own, parts[-1] not in IMAGE_FOLDERS

    @cached_property
    def _files(self) -> dict[str, list[tuple[str, str]]]:
        """Simple name of a file -> (path, simple path seen from its root) of all files of this name."""
        files = defaultdict(list)
        is_inside = os.path.join(self.beside, "").startswith(os.path.join(self.root, ""))
        for root in [self.root] if is_inside else [self.root, self.beside]:
            for path in self._walk(root):
                simple = _simplify(os.path.relpath(path, root))
                files[simple.rpartition("/")[2]].append((path, simple))
        return files

    def _walk(self, root: str) -> Iterator[str]:
        """Every file of a folder, hidden ones left out; through links to folders only where they may be followed."""
        seen = set()
        for folder, folders, names in os.walk(root, followlinks=True):
            real = os.path.realpath(folder)
            if real in seen or not self._may_read(real):
                folders.clear()
                continue
            seen.add(real)
            folders[:] = sorted(each for each in folders if not each.startswith("."))
            yield from (os.path.join(folder, name) for name in names if not name.startswith("."))

    def _find_nearest(self, name: str) -> str:
        """The file whose name is most like a missing one's, "" where none is."""
        wanted = _simplify(name).rpartition("/")[2]
        near = [wanted] if wanted in self._files else []
        if not near:
            near = [each for each in self._files if _strip(each) == _strip(wanted)]
        if not near and len(self._files) <= _NEAREST_NAMES and self.guesses < 20:  # it takes a while
            self.guesses += 1
            near = difflib.get_close_matches(wanted, self._files, 1, 0.8)
        return os.path.relpath(self._files[near[0]][0][0], self.root) if near else ""


def _simplify(name: str) -> str:
    """A path as all tools may spell it: NFC, lower case, slashes, nothing percent-encoded."""
    plain = unicodedata.normalize("NFC", unquote(name)).casefold().replace("\\", "/")
    return "/".join(part for part in plain.split("/") if part not in ("", "."))


def _strip(name: str) -> str:
    """A name without ending and marks."""
    return re.sub(r"[\W_]", "", name.rpartition(".")[0] or name)


def _split_words(name: str) -> set[str]:
    """The words of a file's or folder's name: `instances_train2017` has `instances` and `train`."""
    words = [re.sub("(?<!s)s$", "", word) for word in re.findall(r"[^\W\d_]+", name.casefold())]
    return {_ALIKE.get(word, word) for word in words}


# What a data set is, as a hash.


def fingerprint_data(data_dir: str | Path, json_names: Sequence[str]) -> str:
    """Hash the content of a data set: its JSON files and every image that they name.

    Where the folder lies and when its files were written make no difference. An image that is missing, or whose path
    leaves the folder and is therefore not read, counts as missing.

    Parameters
    ----------
    data_dir : folder that the JSON files are relative to, and where their images are looked for; see `ImageFinder`.
    json_names : COCO files, or what else `open_source` reads, such as ["train.json", "val.json"]; their order counts.

    Returns
    -------
    32 hex digits.

    Raises
    ------
    InputError : a JSON file is missing, is not JSON or lists no images; an image exists and cannot be read.
    """
    found, digests = {}, []
    for name in json_names:
        finder, images = ImageFinder(data_dir, name), open_source(data_dir, name).images
        if not all(images):
            required = "`images` must be a list of objects with a `file_name`"
            raise InputError(f"{Path(data_dir) / name}: {required}; export it again as COCO")
        digests.append(hash_annotations(data_dir, name))
        found |= {(image, finder.find(image)[0]): None for image in images}
    hashes = hash_files([path for _, path in found])
    images = sorted({(name, digest) for (name, _), digest in zip(found, hashes, strict=True)})
    return hash_text(json.dumps([digests, images]))


def fingerprint_sets(data_dir: str | Path, json_names: Sequence[str], extra_data: Sequence[Mapping[str, Any]]) -> str:
    """Hash the content of a data set and of those that join it, with how they join; see `fingerprint_data`."""
    hashes = [fingerprint_data(data_dir, json_names)]
    for entry in extra_data:
        options = {name: value for name, value in entry.items() if name not in ("data_dir", "json")}
        hashes.append([fingerprint_data(entry.get("data_dir", data_dir), [entry["json"]]), options])
    return hashes[0] if len(hashes) == 1 else hash_text(json.dumps(hashes, sort_keys=True))
