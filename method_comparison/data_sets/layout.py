"""What the readers of published data sets share: finding the pieces of a layout, and the errors where one is missing."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from peft_audio.data import AUDIO_SUFFIXES, Clip, ClipTable, DataError, read_rows


@dataclass(frozen=True)
class DataFolder:
    """The folder a published data set was unpacked into.

    Every method raises `DataError` where a piece is not as published: it names the piece, the rule, the value, and
    where the data set is published.

    Args:
        root: the folder.
        title: the official name of the data set.
        published: where it is published.
    """

    root: Path
    title: str
    published: str

    def __post_init__(self):
        object.__setattr__(self, "root", Path(self.root))
        if not self.root.is_dir():
            raise self.error(self.root, "no such folder. Give the one the data set was unpacked into.")

    def error(self, where, problem: str) -> DataError:
        return DataError(f"{where}: {problem} {self.title} is published as {self.published}.")

    def refuse(self, values: Iterable[str], where, problem: str) -> None:
        """Raises if there are `values`; lists the first three, and how many there are."""
        values = sorted(values)
        if values:
            first = ", ".join(repr(value) for value in values[:3]) + (
                f" and {len(values) - 3} more" if len(values) > 3 else ""
            )
            raise self.error(where, f"{len(values)} {problem}: {first}. Unpack it again, or correct the list.")

    def check_option(self, name: str, value, allowed: tuple) -> None:
        if value not in allowed:
            choices = ", ".join(repr(choice) for choice in allowed)
            raise self.error(self.root, f"option {name} must be one of {choices}, got {value!r}.")

    def file(self, name: str) -> Path:
        path = self.root / name
        if not path.is_file():
            raise self.error(path, f"no such file. The folder given as {self.title} must hold {name}.")
        return path

    def folder(self, *names: str) -> Path:
        """The first of these folders that exists."""
        for name in names:
            if (self.root / name).is_dir():
                return self.root / name
        raise self.error(self.root, f"has no folder {' or '.join(names)}.")

    def rows(self, name: str, columns: Iterable[str]) -> list[tuple[str, dict[str, str]]]:
        """The rows of a csv file: where each stands ("FILE line N"), and its values by column.

        All of `columns` exist and none of their values is empty.
        """
        path = self.file(name)
        found, rows = read_rows(path)
        missing = [column for column in columns if column not in found]
        if missing:
            raise self.error(path, f"column {', '.join(missing)} is missing, the columns are {', '.join(found)}.")
        for line, row in rows:
            empty = [column for column in columns if not row[column]]
            if empty:
                raise self.error(f"{path} line {line}", f"column {', '.join(empty)} is empty.")
        return [(f"{path} line {line}", row) for line, row in rows]

    def lines(self, name: str, form: str) -> list[tuple[str, list[str]]]:
        """The lines of a text file without a header: where each stands ("FILE line N"), and its fields.

        `form` names the fields, with commas or blanks between them as between the fields: "index,label,mid".
        """
        path = self.file(name)
        separator = "," if "," in form else None
        lines = []
        try:
            text = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise self.error(path, f"not a text file in UTF-8 ({error}).") from None
        for number, line in enumerate(text.splitlines(), start=1):
            fields = [field.strip() for field in line.split(separator)]
            if not any(fields):
                continue
            if len(fields) != len(form.split(separator)):
                raise self.error(f"{path} line {number}", f"must be '{form}', got {line!r}.")
            lines.append((f"{path} line {number}", fields))
        if not lines:
            raise self.error(path, "is empty.")
        return lines

    def split_lists(self, lists: Mapping[str, str]) -> dict[str, str]:
        """The split of each listed name, from one file a split that holds one name a line; no name is in two."""
        splits = {}
        for split, list_name in lists.items():
            for where, (name,) in self.lines(list_name, "name"):
                if splits.setdefault(name, split) != split:
                    raise self.error(where, f"{name!r} is in {lists[splits[name]]} too. A clip has one split.")
        return splits

    def class_folders(self, parent: Path) -> list[Clip]:
        """The audio files in the folders in `parent`, by name ("blues/blues.00000.wav"); the folder is the label."""
        names = sorted(
            path.relative_to(parent).as_posix()
            for path in parent.glob("*/*")
            if path.suffix.lower() in AUDIO_SUFFIXES and not path.name.startswith(".")
        )
        return [Clip(name, parent / name, (name.split("/")[0],)) for name in names]

    def check_files(self, files: Iterable[Path]) -> None:
        missing = [file for file in dict.fromkeys(files) if not file.is_file()]
        self.refuse((file.relative_to(self.root).as_posix() for file in missing), self.root, "audio files are missing")

    def table(self, clips: list[Clip], multi_label: bool = False) -> ClipTable:
        """These clips as a table, once each is there and has a name of its own."""
        if not clips:
            raise self.error(self.root, "no clips found.")
        twice = [name for name, count in Counter(clip.name for clip in clips).items() if count > 1]
        self.refuse(twice, self.root, "clips are listed twice")
        self.check_files(clip.source for clip in clips)
        return ClipTable(clips, f"{self.title} in {self.root}", multi_label)
