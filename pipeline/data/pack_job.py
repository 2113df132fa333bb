"""A step on a whole pack, as it is known before the first image: `reference`, `coupling`."""

from dataclasses import dataclass
from pathlib import Path

from pipeline.config.paths import out_file, pack_folder, record_file
from pipeline.config.schema import Config
from pipeline.config.stages import rank_keys
from pipeline.data.pack import Pack, Record, open_pack


@dataclass(frozen=True)
class PackJob:
    """A configuration, the pack that it names, and the file that is made of it."""

    stage: str
    config: Config
    pack: Pack
    out: Path

    @property
    def identity(self) -> dict[str, object]:
        """Values that all ranks must share."""
        return {**rank_keys(self.config, self.stage), "pack": self.pack.record.sha256.to_json()}


def pack_job(stage: str, config: Config, path_words: dict[str, str], default: Path) -> PackJob:
    """The job of a stage, by the words `record` and `out` of its command line.

    `default`: the file that it writes without `out`. Raises UserError if the pack is not that of
    the record, or the file cannot be written.
    """
    record = Record.read(Path(path_words.get("record", record_file(config))))
    pack = open_pack(pack_folder(config), record)
    return PackJob(stage, config, pack, out_file(Path(path_words.get("out", default))))
