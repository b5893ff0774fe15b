"""Building one index in several processes: the main one says what is to be embedded, each embeds its share of it.

The main process writes into the index itself, each other one into an index of its own (see ``index_shares``), which the
main one takes over at the end. So a process that dies loses what it gathered since its last segment, and the next run
embeds that.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.utils import comm
from tqdm import tqdm

from oesir_d2.data import list_images
from oesir_d2.data.images import ImageFile
from oesir_d2.engine.embedder import Embedder
from oesir_d2.engine.index_shares import adopt_shares, get_share_path
from oesir_d2.engine.indexing import BuildSummary, Progress, build_index, embed_files, find_changed_files, summarise
from oesir_d2.engine.object_search import bring_up_to_date, check_backend
from oesir_d2.engine.process_launch import ProcessLayout, launch_processes
from oesir_d2.index import IndexWriter, SkippedFiles

# Processes do not finish their shares at the same time.
PATIENCE = timedelta(days=30)
GRACE_SECONDS = 5

GO_ON = "what is finished is kept, and run again the build goes on from there"


@dataclass(frozen=True)
class Build:
    """What to build: the arguments of :func:`build_index`, with the collection as :func:`list_images` takes it."""

    cfg: CfgNode
    images: str
    output: Path
    strict: bool


def launch_build(build: Build, layout: ProcessLayout) -> BuildSummary | None:
    """Build an index, or bring it up to date, in as many processes as the layout has; one is :func:`build_index`.

    Returns:
        What was done; None on another machine than the first.

    Raises:
        ValueError, FileNotFoundError, OSError: as :func:`build_index`, in whichever process it was found.
        ChildProcessError: a process was killed. What the others finished is taken over by the next run.
    """
    layout.check(build.cfg)
    if layout.total == 1:
        return build_index(build.cfg, list_images(build.images), build.output, build.strict)
    check_backend(build.cfg, build.output)
    receiver, sender = multiprocessing.get_context("spawn").Pipe(duplex=False)
    try:
        launch_processes(_build_in_process, layout, (build, layout.processes, sender))
    except ChildProcessError as error:
        raise ChildProcessError(f"{error}; {GO_ON}") from error
    if not receiver.poll():
        return None
    bring_up_to_date(build.cfg, build.output)
    return receiver.recv()


def _build_in_process(build: Build, processes: int, sender: Connection) -> None:
    """One process's part; detectron2 has set its rank, and its GPU if there is one."""
    cfg = build.cfg.clone()
    cfg.defrost()
    if cfg.MODEL.DEVICE.startswith("cuda"):
        cfg.MODEL.DEVICE = f"cuda:{comm.get_rank() % processes}"
    # Else every process would take all cores.
    torch.set_num_threads(max(1, torch.get_num_threads() // processes))
    group = _Group()
    embedder = Embedder(cfg)
    if comm.is_main_process():
        sender.send(_build_main_share(build, cfg, embedder, group))
    else:
        _build_other_share(build, cfg, embedder, group)


def _build_main_share(build: Build, cfg: CfgNode, embedder: Embedder, group: _Group) -> BuildSummary:
    start = time.perf_counter()
    files = list_images(build.images)
    with (
        IndexWriter(build.output, embedder.info, cfg.INDEX.FACTORY, cfg.INDEX.SEGMENT_IMAGES) as writer,
        SkippedFiles(build.output) as skipped_files,
        tqdm(total=len(files), desc="Embedding", unit="photo") as progress,
    ):
        # What an earlier build left is older than what this one finds.
        adopt_shares(writer, skipped_files)
        changed = list(find_changed_files(writer, files, skipped_files, progress))
        writer.flush()
        share = group.divide(changed)
        parts = group.gather(embed_files(embedder, share, writer, skipped_files, progress, build.strict))
        writer.flush()
        adopt_shares(writer, skipped_files)
        progress.update(len(changed) - len(share))
        done = Progress(sum(part.embedded for part in parts), sum(part.skipped for part in parts))
        return summarise(writer.manifest, done, time.perf_counter() - start)


def _build_other_share(build: Build, cfg: CfgNode, embedder: Embedder, group: _Group) -> None:
    share = group.divide()
    path = get_share_path(build.output, comm.get_rank())
    with (
        IndexWriter(path, embedder.info, cfg.INDEX.FACTORY, cfg.INDEX.SEGMENT_IMAGES) as writer,
        SkippedFiles(path) as skipped_files,
        tqdm(disable=True) as progress,
    ):
        done = embed_files(embedder, share, writer, skipped_files, progress, build.strict)
    # Written and let go of, before the main process is told.
    group.gather(done)


class _Group:
    """All processes of a build; what they tell each other goes through the processors' memory, on a GPU as well."""

    def __init__(self) -> None:
        self._group = dist.new_group(backend="gloo", timeout=PATIENCE)

    def divide(self, files: Sequence[ImageFile] = ()) -> list[ImageFile]:
        """This process's share of the files that the main one names; neighbours, which are alike in size, go apart."""
        told: list[Any] = [list(files)]
        with _telling_of_lost_processes():
            dist.broadcast_object_list(told, src=0, group=self._group)
        return told[0][comm.get_rank() :: comm.get_world_size()]

    def gather(self, done: Progress) -> list[Progress]:
        """Wait until all processes are done with their shares."""
        parts: list[Any] = [None] * comm.get_world_size()
        with _telling_of_lost_processes():
            dist.all_gather_object(parts, done, group=self._group)
        return parts


@contextmanager
def _telling_of_lost_processes() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        # The one that ended has more to tell: on this machine, it is heard first, and this one is told to end.
        time.sleep(GRACE_SECONDS)
        raise ConnectionError(f"another process of this build ended early; {GO_ON}") from error
