"""What `train_json` may name: a COCO file, a folder of masks, or another format, recognised by its content.

Formats that hold polygons or masks are read as COCO content, folders of them in `label_folders.py` and `mask_folders.py`;
the others are refused by their names. A dry run of a grid imports this file: what reads pixels is imported where it does.
"""

import json
import os
import reprlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import yaml

from seglib.data import label_folders, mask_folders
from seglib.data.label_folders import Content, Source, name_classes, read_json, read_text, remember_files
from seglib.data.mask_folders import IMAGE_ENDINGS, encode_labels
from seglib.errors import InputError, InputErrors
from seglib.files import hash_files, hash_text

if TYPE_CHECKING:
    import numpy as np

_COCO = "a COCO file of instances"
_VERSION = 1  # of what is made of the other formats


def open_source(data_dir: str | Path, name: str) -> Source:
    """Find out what `data_dir/name` is.

    Raises
    ------
    InputError
        Missing, unreadable, or of a format that holds no outlines or is not read here; it names the format and the fix.
    """
    path = Path(data_dir) / name
    if found := _find_folder(Path(data_dir), name):
        return _open(*found, Path(data_dir))
    if mask_folders.is_mask_split(data_dir, name):
        folder = mask_folders.read_description(data_dir)
        images = [image for image, _ in mask_folders.list_pairs(folder, name)]
        return Source("masks", images, folder.class_names, partial(mask_folders.read_masks, data_dir, name))
    content = read_json(path)
    kind, read = _recognise(content, path)
    _kinds[_stamp(path)] = kind
    return _open(read, kind, content, path, Path(data_dir))


def _open(read: Callable[..., Source], kind: str, *about: Any) -> Source:
    """What is no sound file of its format is refused, where it is opened and where it is read."""
    if kind == _COCO:  # which is looked at closely by `load_coco`
        return read(kind, *about)
    source = _refuse_unsound(kind, about[-2], partial(read, kind, *about))
    return replace(source, read=partial(_refuse_unsound, kind, about[-2], source.read))


def _refuse_unsound(kind: str, path: Path, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except InputError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, OSError, yaml.YAMLError) as error:
        raise InputError(
            f"{path}: must be as {kind} writes it, got something else ({error!r}); export it again"
        ) from error


def is_annotation_folder(data_dir: str | Path, name: str) -> bool:
    """Whether a name is a folder of labelme's or YOLO's files."""
    return _find_folder(Path(data_dir), name) is not None


def _find_folder(data_dir: Path, name: str) -> tuple[Callable[..., Source], str, Path] | None:
    """How a folder of annotations is read, its kind, and where it is; None where the name is none."""
    if os.path.splitext(name)[1].lower() == ".json" or os.path.isfile(os.path.join(data_dir, name)):
        return None
    found = ((read, kind, find(data_dir, name)) for kind, find, read in _FOLDERS)
    return next((each for each in found if each[-1]), None)


def hash_annotations(data_dir: str | Path, name: str) -> str:
    """Hash of all that decides what a name's images are annotated with; "" where there is no such file."""
    path = Path(data_dir) / name
    if mask_folders.is_mask_split(data_dir, name) and not is_annotation_folder(data_dir, name):
        return mask_folders.hash_masks(data_dir, name)
    if not os.path.exists(path) or (path.is_file() and _kinds.get(_stamp(path)) == _COCO):
        return hash_files([path])[0]
    source = open_source(data_dir, name)
    hashes = hash_files(source.files)
    if source.kind == _COCO:
        return hashes[0]
    names = [os.path.relpath(each, data_dir) for each in source.files]
    return hash_text(json.dumps([_VERSION, source.kind, names, hashes, [*source.class_names]]))


_kinds: dict[tuple, str] = {}  # of JSON files that were read, as long as they stay as they are


def _stamp(path: Path) -> tuple:
    stat = os.stat(path)
    return os.path.abspath(path), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


# COCO and its kind.


def open_coco(kind: str, content: Content, path: Path, data_dir: Path) -> Source:
    """A COCO file, whatever is wrong inside."""
    images, categories = (content.get(name) for name in ("images", "categories"))
    names = [read_text(each, "file_name") for each in images] if isinstance(images, list) else [""]
    listed = [each for each in categories if isinstance(each, dict)] if isinstance(categories, list) else []
    classes = [read_text(each, "name") for each in listed if each.get("ignore") != 1]
    return Source(kind, names, classes, lambda: content, [path])


def open_lvis(kind: str, content: Content, path: Path, data_dir: Path) -> Source:
    """LVIS names its images by their addresses, `.../train2017/000000391895.jpg`."""
    images = [
        {"file_name": "/".join(read_text(each, "coco_url").split("/")[-2:]), **each} for each in content["images"]
    ]
    return open_coco(kind, content | {"images": images}, path, data_dir)


def open_panoptic(kind: str, content: Content, path: Path, data_dir: Path) -> Source:
    """Panoptic JSON, and its PNGs in a folder of the file's name, or beside it."""
    entries = [each for each in content["annotations"] if read_text(each, "file_name")]
    names = [Path(each["file_name"]) for each in entries]
    if outside := [str(name) for name in names if name.is_absolute() or ".." in name.parts]:
        raise InputError(
            f"{path}: files of segments must stay inside the data folder, got {outside[0]!r}; export it again"
        )
    folders = [path.with_suffix(""), data_dir / path.stem, path.parent, data_dir]
    folder = next((each for each in folders if names and (each / names[0]).is_file()), folders[0])
    files = [path, *(folder / name for name in names)]

    def read() -> Content:
        return remember_files(kind, files, lambda: _decode_panoptic(content, entries, files[1:]))

    return replace(open_coco(kind, content, path, data_dir), files=files, read=read)


def _decode_panoptic(content: Content, entries: Sequence[Content], pngs: Sequence[Path]) -> Content:
    """Each segment is an object; pixels of none (black) are not annotated."""
    annotations, problems = [], []
    for entry, path in zip(entries, pngs, strict=True):
        segments = [each for each in entry["segments_info"] if "id" in each]
        try:
            found = _read_segments(path, [each["id"] for each in segments])
        except InputError as error:
            problems.append(str(error))
            continue
        for segment, (rle, area) in zip(segments, found, strict=True):
            own = {"image_id": entry.get("image_id"), "segmentation": rle, "area": area}
            annotations.append({**segment, **own, "id": len(annotations) + 1})
    if problems:
        raise InputErrors(problems[:100])
    return content | {"annotations": annotations}


def _read_segments(path: Path, ids: Sequence[int]) -> list[tuple[Content, int]]:
    """(RLE, pixels) of each segment: the id is red + 256 green + 65,536 blue."""
    import numpy as np

    from seglib.data.images import opening

    with opening(path, "the segments of an image must be a PNG that can be read", "copy it again") as image:
        codes = np.asarray(image.convert("RGB"), np.int64) @ [1, 256, 65536]
    found, labels = np.unique(codes, return_inverse=True)
    places = {code: place for place, code in enumerate(ids, 1)} | {0: 0}
    if unknown := [code for code in found.tolist() if code not in places]:
        raise InputError(f"{path}: ids must be those of segments_info, got {unknown[0]}; export both again")
    labels = np.array([places[code] for code in found.tolist()], np.int64)[labels.reshape(codes.shape)]
    return encode_labels(labels, len(ids))


# Label Studio: a list of tasks; coordinates are per cent of the image, brush strokes a run-length code of their own.


def open_tasks(kind: str, tasks: list[Content], path: Path, data_dir: Path) -> Source:
    """Label Studio's JSON: the tasks that were annotated."""
    shown = [(task, answer) for task in tasks if (answer := _choose_answer(task)) is not None]
    names = _name_images([task for task, _ in shown])
    results = [_read_results(answer, f"{path} [{name}]") for name, (_, answer) in zip(names, shown, strict=True)]
    used = {label for each in results for label, _ in each}
    categories, files = label_folders.list_categories(used, data_dir, path.parent, path)

    def read_one(name: str, found: list[tuple[str, Content]]) -> label_folders.AnnotatedImage:
        size = dict(zip(("width", "height"), _read_size(found[0][1]), strict=True)) if found else {}
        objects = [(label, _read_shape(each, f"{path} [{name}]")) for label, each in found]
        return {"file_name": name, **size}, objects

    def read() -> Content:
        return label_folders.compose(map(read_one, names, results), categories)

    files = [path, *files]  # strokes take a while to decode
    return Source(kind, names, name_classes(categories), lambda: remember_files(kind, files, read), files)


def _choose_answer(task: Content) -> Content | None:
    """The annotation of a task that counts: the ground truth, else the last; None where it was left out."""
    answers = task.get("annotations", task.get("completions")) or []
    answers = [each for each in answers if not (each.get("was_cancelled") or each.get("skipped"))]
    return max(answers, key=lambda a: (bool(a.get("ground_truth")), str(a.get("created_at", ""))), default=None)


def _name_images(tasks: Sequence[Content]) -> list[str]:
    """The files' names, with folders where these alone tell two apart."""
    values = [[each for each in task.get("data", {}).values() if isinstance(each, str)] for task in tasks]
    urls = [next((each for each in texts if _is_image(each)), texts[0] if texts else "") for texts in values]
    paths = [unquote(url.rpartition("?d=")[2].partition("?")[0]).replace("\\", "/") for url in urls]
    times = Counter(path.rpartition("/")[2] for path in paths)
    return [path.rpartition("/")[2] if times[path.rpartition("/")[2]] == 1 else path.strip("/") for path in paths]


def _is_image(url: str) -> bool:
    return os.path.splitext(url.partition("?d=")[2] or url.partition("?")[0])[1].lower() in IMAGE_ENDINGS


def _read_results(answer: Content, where: str) -> list[tuple[str, Content]]:
    """(label, result) of each region; of one that is drawn first and named then, two results have one id."""
    results = [each for each in answer.get("result", []) if isinstance(each.get("value"), dict)]
    kinds = [str(each.get("type")) for each in results]
    labels = [
        each["value"].get(kind) if kind.endswith("labels") else [] for kind, each in zip(kinds, results, strict=True)
    ]
    found = [(label[0], each) for label, each in zip(labels, results, strict=True) if label]
    named = {each.get("id") for _, each in found}
    outlined = [each.get("id") for each in results if {"points", "rle"} & each["value"].keys()]
    if lonely := sum(number not in named for number in outlined):
        raise InputError(f"{where}: regions must have a label, got {lonely} without; label or delete them")
    return found


def _read_size(result: Content) -> tuple[int, int]:
    return result.get("original_width"), result.get("original_height")


def _read_shape(result: Content, where: str) -> Any:
    """A COCO segmentation; of boxes and points none."""
    value, (width, height) = result["value"], _read_size(result)
    if result.get("image_rotation"):
        raise InputError(f"{where}: images must be upright, got one turned in Label Studio; turn it back there")
    if "points" in value:
        return [[each for x, y in value["points"] for each in (x * width / 100, y * height / 100)]]
    if value.get("format") == "rle" or "rle" in value:
        try:
            return label_folders.encode_mask(decode_brush(value["rle"], height, width))
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"{where}: a brush stroke must be readable, got: {error}; export it as COCO") from None
    return []


def decode_brush(rle: Sequence[int], height: int, width: int) -> "np.ndarray":
    """(height, width) bool of Label Studio's code of a brush stroke, bytes of RGBA in runs; ValueError where it is broken.

    Source: `encodeBytes` of @thi.ng/rle-pack, which Label Studio calls: 32 bits count of values, 5 bits length of one less
    1, four times 4 bits length of a run's length less 1; then for each run a bit (0: single values), 2 bits that choose the
    length, the run's length less 1, and its values.
    """
    import numpy as np

    bits, at, done = format(int.from_bytes(bytes(rle)), f"0{8 * len(rle)}b"), 0, 0

    def take(number: int) -> int:
        nonlocal at
        at += number
        return int(bits[at - number : at], 2)

    count, word, sizes = take(32), take(5) + 1, [take(4) + 1 for _ in range(4)]
    if count != 4 * height * width:
        raise ValueError(f"{count} values for {width}x{height} px of four")
    values = np.zeros(count, np.uint8)
    while done < count:
        is_run, length = take(1), take(sizes[take(2)]) + 1
        values[done : done + length] = take(word) if is_run else [take(word) for _ in range(length)]
        done += length
    return values.reshape(height, width, 4)[..., 3] > 0


# Files, by what is in them.


def take_first(content: Any, name: str) -> Content:
    """The first entry of a list in a file's content, {} where there is none."""
    entries = content.get(name) if isinstance(content, dict) else None
    return entries[0] if isinstance(entries, list) and entries and isinstance(entries[0], dict) else {}


def _recognise(content: Any, path: Path) -> tuple[str, Callable[..., Source]]:
    known = {list: _OF_LISTS, dict: _OF_OBJECTS}.get(type(content), {})
    first = take_first(content if isinstance(content, dict) else {"annotations": content}, "annotations")
    for kind, (fits, read) in known.items():
        if fits(content, first):
            if isinstance(read, str):
                raise InputError(f"{path}: must be {_COCO}, got {kind}; {read}")
            return kind, read
    if isinstance(content, dict):
        return _COCO, open_coco
    raise InputError(f"{path}: must hold a JSON object with `images` and `categories`, got {reprlib.repr(content)}")


def _is_lvis(image: Content) -> bool:
    return "coco_url" in image and "file_name" not in image


def _is_via(content: Content) -> bool:
    return "_via_img_metadata" in content or any(
        isinstance(each, dict) and "regions" in each for each in content.values()
    )


def _has_outlines(content: Content) -> bool:
    return any(each.get("segmentation") for each in content["annotations"] if isinstance(each, Mapping))


_Fits = Callable[[Any, Content], bool]  # of a file's content, and its first annotation or entry
_OF_LISTS: dict[str, tuple[_Fits, Any]] = {  # kind -> how it is recognised, and read, or what to do instead
    "Label Studio": (
        lambda _, first: "data" in first and bool({"annotations", "completions"} & first.keys()),
        open_tasks,
    ),
    "detections without images and categories": (
        lambda _, first: "image_id" in first,
        "put them as `annotations` into a file with the `images` and `categories` that they were made for",
    ),
    "Label Studio's JSON-MIN": (lambda _, first: "annotator" in first, "export it as JSON or COCO"),
    "CreateML's boxes": (lambda _, first: "image" in first, "export polygons or masks as COCO"),
}
_OF_OBJECTS: dict[str, tuple[_Fits, Any]] = {
    "panoptic": (lambda _, first: "segments_info" in first, open_panoptic),
    "LVIS": (lambda content, _: _is_lvis(take_first(content, "images")), open_lvis),
    "captions": (lambda _, first: "caption" in first, "name the file of instances, which has outlines"),
    "keypoints without outlines": (
        lambda content, first: "keypoints" in first and not _has_outlines(content),
        "export outlines (segmentation) with them",
    ),
    "one image of labelme": (lambda content, _: label_folders.is_labelme(content), "name the folder of these files"),
    "one image of Cityscapes": (
        lambda content, _: {"imgHeight", "objects"} <= content.keys(),
        "use the masks (labelIds.png) with a classes.json",
    ),
    "VGG Image Annotator": (lambda content, _: _is_via(content), "export it there as COCO"),
}
_FOLDERS = (
    ("labelme", label_folders.find_labelme, label_folders.open_labelme),
    ("YOLO", label_folders.find_yolo, label_folders.open_yolo),
    ("files per image", label_folders.find_boxes, label_folders.refuse_boxes),
)
