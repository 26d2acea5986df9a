"""Masks drawn of what comes in another form: polygons of labelme, COCO and YOLO, or a file for each class.

For training they lie on disk, and are then looked at and read like all others; predict.py draws each when it is scored.

A mask holds 0 for background and 1, 2, ... for the classes, has a colour for each, and says their names.
"""

import io
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from parts.errors import UnusableFile, UserError, counted, list_files, printable, tell, within_memory
from parts.files import (
    Provenance,
    content,
    keep_only,
    parallel_map,
    read_own,
    refuse_link,
    stamp,
    write_changed,
    write_text,
)
from parts.images import image_size
from parts.mask_rules import find_mask_rule
from parts.masks import IGNORED, MOST_CLASSES, MaskRule, class_colour, encode_mask, png_options, read_mask, size_text
from parts.names import LEAVE_OUT, Folder, ImageNames, Listing, ends_in_mask, list_images, walk
from parts.spec import BACKGROUND, DataSpec

Folders = tuple[Folder, Folder]  # of images and of masks
Size = tuple[int, int]  # height, width
Outline = np.ndarray  # float (corners, 2): x, y in pixels, of which the first reaches from 0 to 1

_NO_LABELS = re.compile(r"(classes|readme.*|train|val|valid|test)\.txt", re.IGNORECASE)  # beside YOLO's labels
VERSION = 1  # of the drawing; raise it when the same annotations give other masks
_EXPORT = "Export it as polygons of labelme, COCO or YOLO, or as masks in PNG"
_AGAIN = "Export one of them again"
_MOST = 1e6  # pixels; corners farther out are moved to there
_CIRCLE = np.stack([np.cos(np.arange(0, 6.28, 0.05)), np.sin(np.arange(0, 6.28, 0.05))], axis=1)


@dataclass(frozen=True)
class Shape:
    """One annotated thing: outlines; run lengths down the columns, of outside and inside in turn; or a mask's file."""

    name: str
    outlines: list[Outline]
    runs: list[int] | None = None
    file: Path | None = None


@dataclass
class Annotated:
    """What a file says of one image: the names that this may have, its (height, width) if told, and its shapes."""

    file: Path
    names: list[str]
    size: list[int] | None
    shapes: list[Shape] = field(default_factory=list)
    as_shares: bool = False  # whether corners are shares of the width and height


@dataclass
class Annotations:
    """What annotates images: the classes in their order, what each image has, how masks of single classes are read."""

    place: Path  # the folder, or the file
    classes: list[str] = field(default_factory=list)
    annotated: list[Annotated] = field(default_factory=list)
    file_rule: MaskRule | None = None  # of masks of single classes

    def by_image(self, names: Iterable[str], img_dir: Folder | None) -> dict[str, list[Annotated]]:
        """What is annotated of each of the images `names`.

        UserError: an image that is annotated is not in `img_dir`. Where that is None others may be annotated too, and
        what lies in another subfolder than its image is found by the file's name. That counts only where it comes once.
        """
        owners, strays = ImageNames(names), defaultdict(list)
        of_image: dict[str, list[Annotated]] = defaultdict(list)
        times = Counter(name.rpartition("/")[2] for name in {annotated.names[0] for annotated in self.annotated})
        for annotated in self.annotated:
            last = annotated.names[0].rpartition("/")[2]
            stems = [annotated.names[0], *(name for name in annotated.names[1:] if name != last)]
            if times[last] == 1 and (img_dir is None or last in annotated.names):
                stems.append(last)
            owner = owners.owner(stems)
            if owner is None:
                strays[annotated.file].append(annotated.names[0])
            else:
                of_image[owner].append(annotated)
        if strays and img_dir is not None:
            problems = [
                f"{printable(file)}: annotates {counted(len(stems), 'image')} that {printable(img_dir)} does not hold, "
                f"e.g. {printable(stems[0])}."
                for file, stems in list(strays.items())[:20]
            ]
            raise UserError("\n".join([*problems, f"Add these images, or remove what annotates them; {LEAVE_OUT}."]))
        return of_image

    def describe(self, of_image: Mapping[str, list[Annotated]]) -> str:
        """In words, what is annotated of images, as `by_image` gives it."""
        shapes = [shape for annotated in of_image.values() for each in annotated for shape in each.shapes]
        numbers = Counter(shape.name for shape in shapes).most_common(20)
        listed = ", ".join(f"{name} ({number:,})" for name, number in numbers) or "nothing"
        kind = "masks of single classes" if self.file_rule else "annotations"
        return f"{printable(self.place)}: {kind} of {counted(len(of_image), 'image')}: {listed}"


def draw_masks(
    folders: Sequence[Folders], place: Folder, spec: DataSpec = DataSpec(), apart: Iterable[Folder] = ()
) -> list[Folders]:
    """The `folders` of images and masks; what annotates, and masks of single classes, is replaced by drawn masks.

    Masks are drawn in `place`/train for the first of the folders and in `place`/val for the second, with the same
    values for the same classes. UserError: names all that cannot be drawn.
    """
    sides = [read_annotations([images], masks, spec) for images, masks in folders]
    classes = list(dict.fromkeys(name for side in filter(None, sides) for name in side.classes))
    if len(classes) >= MOST_CLASSES:
        raise UserError(f"{printable(folders[0][1])}: {len(classes):,} classes, and {MOST_CLASSES - 1} is the most.")
    drawn = []
    for name, (img_dir, mask_dir), side in zip(("train", "val"), folders, sides):
        drawn.append((img_dir, mask_dir))
        if side:
            folder = Path(place) / name
            refuse_link(folder, Path(place).parent)
            images = list_images(img_dir, spec, [place, Path(place).parent, *apart, mask_dir])
            _draw_side(side, images, classes, folder, spec)
            drawn[-1] = (img_dir, folder)
    return drawn


def read_annotations(places: Sequence[Folder], masks: Folder, spec: DataSpec) -> Annotations | None:
    """What a folder, or file, of masks says of the images in `places`, folders or files; None: it holds masks as they
    are. UserError."""
    side = Annotations(Path(masks))
    images = [place if place.is_dir() else place.parent for place in map(Path, places)]
    if spec.class_files and _take_class_files(side, images, spec):
        return side
    files = _annotation_files(images, side.place, spec)
    if not files:
        return None
    if spec.class_files:
        raise UserError(f"{list_files(files)}: annotations, and no masks named as CLASSES = {spec.classes!r} says.")
    faults = []
    root = side.place if side.place.is_dir() else files[0].parent
    yolo_names = _yolo_names(root) if files[0].suffix == ".txt" else []
    for file in files:
        name = file.relative_to(root).with_suffix("").as_posix()
        try:
            if file.suffix == ".txt":
                _take_yolo(side, file, name, yolo_names)
            else:
                _take_json(side, file, name, json.loads(_text(file)))
        except UnusableFile as fault:
            faults.append(str(fault))
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError, OverflowError) as error:
            problem = f"is damaged, or not what labelme, COCO or YOLO write ({type(error).__name__}: {error})"
            faults.append(str(UnusableFile(file, problem[:300], _EXPORT)))
    if faults:
        raise UserError("\n".join(faults[:20]))
    return side


def _annotation_files(images: list[Path], masks: Path, spec: DataSpec) -> list[Path]:
    """The files of annotations in the place of masks: of .json, or else of .txt; none where there are masks."""
    if masks.is_file() and masks.suffix.lower() == ".json":
        return [masks]
    if not masks.is_dir():
        return []
    listing = walk(masks)
    if _holds_masks(listing, images, spec):
        return []
    files = [file for file in listing.left_out if not file.name.startswith(".")]
    jsons = [file for file in files if file.suffix.lower() == ".json"]
    return jsons or _yolo_labels(files, images)


def _yolo_labels(files: list[Path], images: list[Path]) -> list[Path]:
    """The texts among `files`, if one of them has the name of an image, as YOLO's labels have."""
    labels = [file for file in files if file.suffix == ".txt" and not _NO_LABELS.fullmatch(file.name)]
    stems = {path.stem for folder in images for path in walk(folder).pictures}
    return labels if any(file.stem in stems for file in labels) else []


def _holds_masks(listing: Listing, images: list[Path], spec: DataSpec) -> bool:
    """Whether the pictures in the place of masks are such, and not all of them images."""
    if not spec.mask_name and any(folder.is_dir() and folder.samefile(listing.folder) for folder in images):
        return any(map(ends_in_mask, listing.pictures))
    return bool(listing.pictures)


# ---- masks of single classes


def _take_class_files(side: Annotations, images: list[Path], spec: DataSpec) -> bool:
    """Adds the files that CLASSES gives to its classes; whether there are any. UserError: a file fits no class."""
    listing = walk(side.place, images)
    side.classes = list(spec.class_files)
    # The longest first: a_left_lung.png is of "{}_left_lung" before "{}_lung"
    patterns = sorted(spec.class_files.items(), key=lambda item: len(item[1].replace("*", "")), reverse=True)
    strays = []
    for path in listing.pictures:
        owners = {name: listing.owners_of(path, pattern) for name, pattern in patterns}
        name = next(filter(owners.get, owners), None)
        if name is None:
            strays.append(path)
        else:
            side.annotated.append(Annotated(path, owners[name], None, [Shape(name, [], file=path)]))
    if not side.annotated:
        return False
    faults = []
    if strays:
        named = f"{list_files(strays)}: named by none of CLASSES = {spec.classes!r}"
        if spec.skip_unpaired:
            tell(f"{named}, and left out.")
        else:
            faults.append(f"{named}. Add the class, or remove them; {LEAVE_OUT}.")
    if spec.ignored_values and max(spec.ignored_values) < 0:
        faults.append(
            f"MASK_IGNORE = {spec.ignore!r}: masks of single classes are drawn into one of whole numbers from 0 on, "
            "which has no such value. Save what is ignored as another one."
        )
    try:
        side.file_rule = find_mask_rule([annotated.file for annotated in side.annotated], DataSpec(ignore=spec.ignore))
    except UserError as fault:
        faults.append(str(fault))
    if faults:
        raise UserError("\n".join(faults))
    return True


def _draw_file(
    mask: np.ndarray,
    file: Path,
    image: Path,
    others: list[Path],
    value: int,
    file_rule: MaskRule,
    background: int | None,
) -> None:
    """Gives `value` to the foreground of a class's mask; adds it where classes may overlap, and `background` is None.

    UnusableFile: it overlaps that of one of the `others`, and may not.
    """
    labels = read_mask(file, file_rule)
    if labels.shape != mask.shape:
        sizes = f"is {size_text(labels.shape)}, and {printable(image)} is {size_text(mask.shape)}"
        raise UnusableFile(file, sizes, _AGAIN)
    inside = labels == 1
    if background is None:
        mask[inside] |= value  # IGNORED has all bits already
        mask[labels == IGNORED] = IGNORED
        return
    overlap = int(np.count_nonzero(inside & (mask != background) & (mask != value) & (mask != IGNORED)))
    if overlap:
        problem = f"marks {counted(overlap, 'pixel')} that another class of the image marks too: {list_files(others)}"
        cure = "Take them out of all but one of the files, or let classes overlap: OVERLAP = True (--overlap)"
        raise UnusableFile(file, problem, cure)
    mask[(labels == IGNORED) & (mask == background)] = IGNORED
    mask[inside] = value


# ---- the files of each tool


def _take_json(side: Annotations, file: Path, name: str, stored: Any) -> None:
    """Adds what labelme or COCO have written to a side. UnusableFile: other kinds of files and shapes."""
    if isinstance(stored, dict) and "shapes" in stored:
        shapes = [_labelme_shape(file, shape) for shape in stored["shapes"]]
        size = [length for length in (stored.get("imageHeight"), stored.get("imageWidth")) if length]
        side.annotated.append(Annotated(file, [name], size or None, shapes))
        side.classes = sorted({*side.classes, *(shape.name for shape in shapes)})
    elif isinstance(stored, dict) and {"images", "annotations", "categories"} <= stored.keys():
        _take_coco(side, file, stored)
    else:
        raise UnusableFile(file, "is not the JSON that labelme or COCO write", _EXPORT)


def _labelme_shape(file: Path, shape: dict) -> Shape:
    points = np.array(shape["points"], float).reshape(len(shape["points"]), 2)
    kind = shape.get("shape_type") or "polygon"
    if kind == "rectangle":
        (left, top), (right, bottom) = points
        points = np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
    elif kind == "circle":
        middle, edge = points
        points = middle + _CIRCLE * np.hypot(*(edge - middle))
    elif kind != "polygon":
        problem = f"has a shape of the kind {printable(kind)[:40]}, which has no area or is not known"
        raise UnusableFile(file, problem, "Draw it as a polygon, or remove it")
    return Shape(_name_of(shape["label"]), [_checked(points)])


def _take_coco(side: Annotations, file: Path, stored: dict) -> None:
    _refuse_repeated_ids(file, stored)
    names = {category["id"]: _name_of(category["name"]) for category in stored["categories"]}
    annotated = {}
    for image in stored["images"]:
        path = Path(image["file_name"].replace("\\", "/")).with_suffix("")
        size = [image["height"], image["width"]]
        annotated[image["id"]] = Annotated(file, [path.as_posix(), path.name], size)
    for entry in stored["annotations"]:
        drawn = entry.get("segmentation")
        if not drawn:
            problem = f"has a box without an outline, annotation {entry.get('id')}; a box is no mask"
            raise UnusableFile(file, problem, "Export outlines (instance segmentation), or remove it")
        image, shape = annotated[entry["image_id"]], Shape(names[entry["category_id"]], [])
        if isinstance(drawn, dict):
            if drawn.get("size", image.size) != image.size:
                raise ValueError(f"run lengths for a size of {drawn['size']}, of an image of {image.size}")
            counts = drawn["counts"]
            runs = _packed_runs(counts) if isinstance(counts, str) else [int(run) for run in counts]
            shape = Shape(shape.name, [], runs)
        else:
            shape.outlines.extend(_checked(np.array(flat, float).reshape(-1, 2)) for flat in drawn)
        image.shapes.append(shape)
    side.classes = list(dict.fromkeys([*side.classes, *names.values()]))
    side.annotated += annotated.values()


def _refuse_repeated_ids(file: Path, stored: dict) -> None:
    for kind, key in (("images", "file_name"), ("categories", "name")):
        times = Counter(number for number, _ in {(entry["id"], entry[key]) for entry in stored[kind]})
        repeated = [number for number, count in times.items() if count > 1]
        if repeated:
            raise UnusableFile(file, f"has several {kind} with the id {repeated[0]}", "Give each its own id")


def _packed_runs(text: str) -> list[int]:
    """Run lengths out of COCO's text: six bits a character, from 48 on, the sixth for more to come; from the fourth
    number on each is the difference from the one before the last (cocoapi, common/maskApi.c, rleFrString)."""
    runs: list[int] = []
    value = shift = 0
    for character in text:
        if shift > 60:
            raise ValueError("run lengths of more than 60 bits")
        bits = ord(character) - 48
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return runs


def _take_yolo(side: Annotations, file: Path, name: str, names: list[str]) -> None:
    image = Annotated(file, [name], None, as_shares=True)
    for line in filter(None, map(str.strip, _text(file).splitlines())):
        label, *numbers = line.split()
        if len(numbers) == 4:
            raise UnusableFile(file, "has boxes, which are no masks", "Export polygons (segmentation)")
        points = _checked(np.array(numbers, float).reshape(-1, 2))
        number = int(label)
        if number < 0 or 0 < len(names) <= number:
            raise UnusableFile(file, f"has class {number}, and there are names for {len(names)}", "Mend one of them")
        name_of_class = names[number] if names else _name_of(number)
        image.shapes.append(Shape(name_of_class, [points]))
    used = {shape.name for shape in image.shapes}
    side.classes = names or sorted({*side.classes, *used}, key=int)
    side.annotated.append(image)


def _yolo_names(folder: Path) -> list[str]:
    """The names of classes by classes.txt or data.yaml, in the folder of YOLO's labels or up to two above it."""
    for place in (folder, *folder.resolve().parents[:2]):
        lines = _text(place / "classes.txt").splitlines()
        # names: [car, lamp], or a line for each: "- car" or "0: car"
        if listed := re.search(r"^names:\s*(\[[^]]*\]|(?:\n[ \t-].*)+)", _text(place / "data.yaml"), re.MULTILINE):
            yaml_lines = re.split(r"[,\n]", listed[1].strip("[]\n"))
            lines = lines or [re.sub(r"^\s*(?:-|\d+:)?\s*|#.*$", "", line).strip(" '\"") for line in yaml_lines]
        if lines:
            return [_name_of(line) for line in lines if line.strip()]
    return []


def _text(file: Path) -> str:
    """The text of a file, "" where there is none."""
    return (content(file) or b"").decode("utf-8-sig", errors="replace")


def _name_of(given: Any) -> str:
    """The name of a class; what is called background is background."""
    name = str(given).strip()[:100]
    if not name:
        raise ValueError("a class without a name")
    return BACKGROUND if name.strip("_").casefold() == BACKGROUND else name


def _checked(points: np.ndarray) -> Outline:
    if len(points) < 3 or not np.isfinite(points).all():
        raise ValueError("an outline needs three corners or more, all of them numbers")
    return points.clip(-_MOST, _MOST)


# ---- drawing


@dataclass(frozen=True)
class _Task:
    """The mask of one image, to be drawn."""

    image: Path
    mask: Path
    annotated: list[Annotated]


def _draw_side(side: Annotations, images: Listing, classes: list[str], folder: Path, spec: DataSpec) -> None:
    """Writes the mask of each annotated image below `folder`, and says what was drawn. UserError."""
    paths = {images.name_of(path): path for path in images.pictures}
    of_image = side.by_image(paths, None if spec.skip_unpaired else images.folder)
    if paths and not of_image:
        raise UserError(f"{printable(side.place)}: annotates no image of {printable(images.folder)}.")
    tasks = [_Task(paths[name], folder / f"{name}.png", annotated) for name, annotated in of_image.items()]
    keep_only(folder, {task.mask for task in tasks})
    names = tuple(dict.fromkeys([BACKGROUND, *classes]))
    values = tuple(range(len(names)))
    colours = tuple(map(class_colour, values))
    mask_rule = MaskRule(classes=values, names=names, colours=colours, ignored=spec.ignored_values)
    if spec.overlap:
        values = tuple(entry.value for entry in spec.listed_classes)
        mask_rule = replace(mask_rule, classes=values, names=tuple(classes), colours=(), files=spec.files)
    _draw_tasks(tasks, mask_rule, side.file_rule or MaskRule(), folder.with_suffix(".json"))
    tell(f"{side.describe(of_image)}. They are drawn into masks, {printable(folder)}.")


def _draw_tasks(tasks: list[_Task], mask_rule: MaskRule, file_rule: MaskRule, memory: Path) -> None:
    """Draws all masks, unless `memory` says that they were drawn of the same files already."""
    annotated = (annotated for task in tasks for annotated in task.annotated)
    files = {str(file) for task in tasks for file in (task.image, task.mask)} | {str(each.file) for each in annotated}

    def provenance() -> Provenance:
        stamps = {file: stamp(file) for file in files}
        return Provenance(VERSION, {"drawn": mask_rule.to_dict(), "read": file_rule.to_dict()}, {"files": stamps})

    if provenance() != read_own(memory, Provenance.from_dict, None):
        faults = list(filter(None, parallel_map(partial(_draw_mask, mask_rule, file_rule), tasks)))
        if faults:
            raise UserError("\n".join(faults[:20]))
        write_text(memory, json.dumps(provenance().to_dict()))


def _draw_mask(mask_rule: MaskRule, file_rule: MaskRule, task: _Task) -> str:
    """Draws the shapes of an image into its mask; gives what is wrong with them, or ""."""
    try:
        with within_memory(task.image):
            value_of = dict(zip(mask_rule.names, mask_rule.classes))
            background = None if mask_rule.overlaps else 0
            mask = draw(task.annotated, task.image, image_size(task.image), value_of, file_rule, background)
    except UnusableFile as fault:
        return str(fault)
    encoded = io.BytesIO()
    options = png_options(dict(zip(mask_rule.values, mask_rule.label_names)))
    encode_mask(mask, mask_rule).save(encoded, "PNG", **options)
    write_changed(task.mask, encoded.getvalue())
    return ""


def draw(
    annotated: Sequence[Annotated],
    image: Path,
    size: Size,
    value_of: Mapping[str, int],
    file_rule: MaskRule | None = None,
    background: int | None = 0,
) -> np.ndarray:
    """The mask of an image, uint8 (H, W): the value of each shape's class inside of it, later ones on top.

    file_rule: that of Annotations. background: what is in no shape; None: 0, and values add up where classes overlap.
    UnusableFile: what of it cannot be drawn.
    """
    mask = np.full(size, background or 0, np.uint8)
    for each in annotated:
        if each.size and each.size != list(size):
            problem = f"annotates it at {printable(each.size)[:60]}, but {printable(image)} is {size_text(size)}"
            raise UnusableFile(each.file, problem, _AGAIN)
        for shape in each.shapes:
            value = value_of[shape.name]
            try:
                if shape.file:
                    others = [other.file for other in annotated if other.shapes[0].name != shape.name]
                    _draw_file(mask, shape.file, image, others, value, file_rule or MaskRule(), background)
                _draw_shape(mask, shape, value, each.as_shares)
            except (ValueError, OverflowError) as error:
                raise UnusableFile(each.file, f"cannot be drawn for {printable(image)} ({error})", _EXPORT) from error
    return mask


def _draw_shape(mask: np.ndarray, shape: Shape, value: int, as_shares: bool) -> None:
    if shape.runs is not None:
        if sum(shape.runs) != mask.size:
            raise ValueError(f"run lengths of {sum(shape.runs)} pixels, not {mask.size}")
        if min(shape.runs) < 0:
            raise ValueError("run lengths below 0")
        inside = np.repeat(np.arange(len(shape.runs)) % 2 == 1, shape.runs)
        mask[inside.reshape(mask.shape, order="F")] = value
    for outline in shape.outlines:
        _fill(mask, outline * mask.shape[::-1] if as_shares else outline, value)


def _fill(mask: np.ndarray, corners: np.ndarray, value: int) -> None:
    """Gives `value` to the pixels whose middle is inside an outline: where an odd number of its edges is to their left.

    cv2.fillPoly also fills the pixels that the outline touches, which makes small things a tenth larger.
    """
    height, width = mask.shape
    following = np.roll(corners, -1, axis=0)
    ends = np.stack([corners[:, 1], following[:, 1]])
    first, last = np.ceil(np.stack([ends.min(axis=0), ends.max(axis=0)]) - 0.5).clip(0, height).astype(int)
    rows_of_edge = last - first
    if not rows_of_edge.any():
        return
    if rows_of_edge.sum() > max(1000, 2 * mask.size):  # around every pixel alone it would be half of that
        raise ValueError(f"an outline that crosses rows of pixels {rows_of_edge.sum():,} times")
    edges = np.repeat(np.arange(len(corners)), rows_of_edge)
    rows = np.arange(len(edges)) - np.repeat(np.cumsum(rows_of_edge) - rows_of_edge, rows_of_edge) + first[edges]
    (x0, y0), (x1, y1) = corners[edges].T, following[edges].T
    columns = np.ceil(x0 + (rows + 0.5 - y0) * (x1 - x0) / (y1 - y0) - 0.5).clip(0, width).astype(int)
    # Of each row the number of crossings is even: what lies between the first and the second is inside, and so on
    crossings = np.sort(rows * width + columns).reshape(-1, 2)
    pixels = mask.reshape(-1)
    for start, end in crossings.tolist():
        pixels[start:end] = value
