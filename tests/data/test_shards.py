"""Parquet shards: the same data as from files, in a folder and in object storage, and what happens to damaged ones."""

from __future__ import annotations

import io
import json
import multiprocessing
import random
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tests.robustness.mutations import mutate
from tests.runs import write_toy
from tests.storage import KINDS, MakeStorage, contents, file_system

from tagmask.data import shard_file, storage
from tagmask.data.check import check_images
from tagmask.data.file_stamp import file_stamp
from tagmask.data.images import read_bytes, read_image
from tagmask.data.samples import Sample, ShardMask, TaggedImages
from tagmask.data.shard_format import INDEX_ENTRY, ShardIndex, _digest, is_safe_id, shard_schema
from tagmask.data.shard_reader import shard_samples
from tagmask.data.shard_row import ShardRow
from tagmask.data.shard_writer import PackedShards, pack_shards
from tagmask.data.source import DataSource
from tagmask.data.verify import ground_truth_fingerprint, verify_images
from tagmask.errors import DataError, TagmaskError
from tagmask.progress import Reporter

NO_PROGRESS = Reporter().progress
FIRST = "data-00000-of-00003.parquet"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight images with tags and masks."""
    return write_toy(tmp_path_factory.mktemp("files") / "toy")


def read_files(data: Path) -> TaggedImages:
    return DataSource(root=str(data), masks="masks").read()


def pack(data: Path, out: str, **arguments: object) -> PackedShards:
    options = {"images_per_shard": 3, "workers": 2, "progress": NO_PROGRESS} | arguments
    return pack_shards(read_files(data), out, **options)  # type: ignore[arg-type]


def verify(images: TaggedImages, **arguments: object) -> TaggedImages:
    options = {"skip_bad": False, "workers": 3, "progress": NO_PROGRESS} | arguments
    return verify_images(images, **options)  # type: ignore[arg-type]


# The same data


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_as_from_files(data: Path, kind: str, make_storage: MakeStorage) -> None:
    out = make_storage(kind)
    packed = pack(data, out)
    assert (packed.num_images, packed.num_kept, len(packed.urls)) == (8, 0, 3)
    assert packed.num_bytes == sum(map(len, contents(out).values()))
    files, shards = read_files(data), DataSource(root=out).read()
    assert shards.classes == files.classes
    assert shards.problems == ()
    assert shards.samples[4].image == f"{out}/data-00001-of-00003.parquet#1.png"
    verified = zip(verify(files).samples, verify(shards).samples, strict=True)
    for file, shard in verified:
        assert (file.id, file.tags, file.size, file.digest) == (shard.id, shard.tags, shard.size, shard.digest)
        np.testing.assert_array_equal(file.read_image(), shard.read_image())
        assert file.mask is not None
        assert shard.mask is not None
        np.testing.assert_array_equal(file.mask.read(), shard.mask.read())
    reports = [check_images(replace(images, name="x"), workers=2, progress=NO_PROGRESS) for images in (files, shards)]
    assert reports[0].to_json() == reports[1].to_json()


def test_bytes_of_images_and_columns_are_as_other_readers_expect(data: Path, tmp_path: Path) -> None:
    pack(data, str(tmp_path / "out"))
    table = pa.concat_tables([pq.read_table(file) for file in sorted((tmp_path / "out").iterdir())])
    assert table.column_names == ["id", "image", "tags", "split", "mask"]
    for row in table.to_pylist():
        assert row["image"] == {"bytes": (data / f"{row['id']}.png").read_bytes(), "path": f"{row['id']}.png"}
        with Image.open(io.BytesIO(row["mask"]["bytes"])) as mask, Image.open(data / f"masks/{row['id']}.png") as drawn:
            assert mask.mode == "P"
            np.testing.assert_array_equal(np.array(mask), np.array(drawn))
        assert row["split"] is None
    assert table["tags"].to_pylist()[3:6] == [["green", "red"], ["blue", "green"], []]
    schema = pq.read_schema(tmp_path / "out" / FIRST)
    assert json.loads(schema.metadata[b"classes"]) == ["blue", "green", "red"]
    features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert features["image"] == features["mask"] == {"_type": "Image"}


def test_hugging_face_reads_shards(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="install tagmask[readers]")
    pack(data, str(tmp_path / "out"))
    files = str(tmp_path / "out" / "*.parquet")
    rows = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    assert [row["id"] for row in rows] == [str(i) for i in range(8)]
    for row in rows:
        np.testing.assert_array_equal(np.array(row["image"]), read_image(data / f"{row['id']}.png"))


def test_unknown_tags_no_tags_and_missing_masks_differ(data: Path, tmp_path: Path) -> None:
    (first, second, *_), out = read_files(data).samples, str(tmp_path / "out")
    images = TaggedImages(("a",), (replace(first, tags=None, mask=None), replace(second, tags=())))
    pack_shards(images, out, progress=NO_PROGRESS)
    read = DataSource(root=out).read()
    assert [(s.tags, s.mask is None) for s in read.samples] == [(None, True), ((), False)]


def test_classes_are_restricted_and_masks_remapped(data: Path, tmp_path: Path) -> None:
    pack(data, str(tmp_path / "out"))
    files = DataSource(root=str(data), masks="masks", classes=("red",)).read()
    shards = DataSource(root=str(tmp_path / "out"), classes=("red",)).read()
    for file, shard in zip(files.samples, shards.samples, strict=True):
        assert isinstance(shard.mask, ShardMask)
        assert file.mask is not None
        assert file.tags == shard.tags
        np.testing.assert_array_equal(file.mask.read(), shard.mask.read())


def test_splits_lie_side_by_side(data: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    images = read_files(data)
    for split, part in (("train", images.samples[:5]), ("lists/val.txt", images.samples[5:])):
        pack_shards(replace(images, samples=part), out, split=split, images_per_shard=4, progress=NO_PROGRESS)
    names = ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet", "val-00000-of-00001.parquet"]
    assert sorted(contents(out)) == names
    ids = {split: [s.id for s in DataSource(root=out, split=split).read().samples] for split in ("train", "val", None)}
    assert ids == {"train": list("01234"), "val": list("567"), None: list("01234567")}
    with pytest.raises(DataError, match=r"no shards of the split 'vall': did you mean 'val'\?"):
        DataSource(root=out, split="vall").read()
    pack_shards(replace(images, samples=images.samples[:1]), out, split="more", progress=NO_PROGRESS)
    with pytest.raises(DataError, match=r"more-.*#0.png and .*train-.*#0.png have the same id '0'; name the split"):
        DataSource(root=out).read()


# Resuming


@pytest.mark.parametrize("kind", KINDS)
def test_what_exists_is_kept_and_the_rest_is_the_same(data: Path, kind: str, make_storage: MakeStorage) -> None:
    out = make_storage(kind)
    pack(data, out)
    before = contents(out)
    system, path = file_system(out)
    system.rm_file(f"{path}/{FIRST}")
    packed = pack(data, out)
    assert packed.num_kept == 2
    assert packed.num_images == 8
    assert contents(out) == before
    assert pack(data, out).num_kept == 3


def test_a_bad_image_stops_after_the_shards_before_it(data: Path, tmp_path: Path) -> None:
    copy, out = write_toy(tmp_path / "copy"), tmp_path / "out"
    (copy / "4.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"4\.png: is empty .*, or leave it out with --skip-bad\.$"):
        pack(copy, str(out))
    assert [file.name for file in out.iterdir()] == [FIRST]
    packed = pack(copy, str(out), skip_bad=True)
    assert (packed.num_images, packed.num_kept) == (7, 1)
    assert len(packed.problems) == 1
    assert pack(copy, str(out), skip_bad=True) == replace(packed, num_kept=3)
    images = DataSource(root=str(out)).read()
    assert [s.id for s in images.samples] == list("0123567")
    assert "4.png" in str(images.problems[0])


@pytest.mark.parametrize("change", ["image", "number", "classes", "other file"])
def test_another_data_set_is_refused(data: Path, tmp_path: Path, change: str) -> None:
    copy, out = write_toy(tmp_path / "copy"), str(tmp_path / "out")
    pack(copy, out)
    before = contents(out)
    arguments: dict[str, object] = {}
    if change == "image":
        Image.new("RGB", (5, 5)).save(copy / "2.png")
    elif change == "number":
        arguments["images_per_shard"] = 4
    elif change == "classes":
        (copy / "tags.csv").write_text((copy / "tags.csv").read_text().replace("blue", "cyan"))
        arguments["split"] = "val"
    else:
        (Path(out) / "own.parquet").write_bytes(b"")
        before["own.parquet"] = b""
    with pytest.raises(DataError, match=r"choose another --out\.$"):
        pack(copy, out, **arguments)
    assert contents(out) == before


def test_only_storage_with_atomic_writes(data: Path) -> None:
    with pytest.raises(DataError, match=r"ftp://host/x cannot be written to; choose a folder, or a URL of s3://"):
        pack(data, "ftp://host/x")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def url_to_fs(url: str) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", url_to_fs)
    with pytest.raises(DataError, match=r's3://b/c needs a package .* install it with pip install "tagmask\[s3\]"\.'):
        DataSource(root="s3://b/c").read()


# Reading only what is needed


@pytest.fixture
def count_bytes(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Return a function that returns how many bytes of shards have been read since the last call."""
    sizes: list[int] = []
    original = storage.read_range

    def read_range(url: str, start: int, end: int) -> bytes:
        sizes.append(end - start)
        return original(url, start, end)

    monkeypatch.setattr(shard_file, "read_range", read_range)
    monkeypatch.setattr(shard_file, "_TAIL_BYTES", 2**16)

    def count() -> int:
        total = sum(sizes)
        sizes.clear()
        return total

    return count


@pytest.fixture
def many(tmp_path: Path) -> str:
    """400 images of noise in two shards of four row groups each."""
    samples = []
    for i in range(400):
        noise = np.random.default_rng(i).integers(0, 256, (40, 40, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{i}.png")
        samples.append(Sample(f"{i:03d}", str(tmp_path / f"{i}.png"), (1,)))
    out = str(tmp_path / "shards")
    pack_shards(TaggedImages(("a",), tuple(samples)), out, images_per_shard=200, progress=NO_PROGRESS)
    return out


def test_one_image_is_read_without_its_shard(many: str, count_bytes: Callable[[], int]) -> None:
    size = sum(map(len, contents(many).values()))
    images = DataSource(root=many).read()
    assert count_bytes() <= 2 * 2**16 < size / 5
    read_bytes(images.samples[399].image)
    assert count_bytes() < size / 5
    read_bytes(images.samples[350].image)
    assert count_bytes() == 0


def test_listed_images_need_little_memory() -> None:
    ids = tuple(f"{i:07}" for i in range(2000))
    index = ShardIndex(
        kind="images", key="", classes=("a", "b"), ids=ids, suffixes=(".jpg",) * 2000, has_mask="1" * 2000,
        tags=tuple((1, 2) if i % 2 else (1 + i % 4 // 2,) for i in range(2000)),
    )  # fmt: skip
    tracemalloc.start()
    try:
        samples = list(shard_samples("photos/data-00000-of-00500.parquet", index))
        size, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert size / len(samples) < 400  # bytes; nearly all are those of the image's and the mask's address
    assert len({id(sample.tags) for sample in samples}) == 3


@pytest.mark.parametrize(("num_kept", "limit"), [(1, 0), (2, 2**19), (8, 2**26)])
def test_the_row_groups_that_were_read_last_are_kept(
    many: str, count_bytes: Callable[[], int], num_kept: int, limit: int
) -> None:
    cache = shard_file.ShardCache()
    cache.max_bytes = limit
    images = [ShardRow.parse(sample.image) for sample in DataSource(root=many).read().samples[::50]]
    rows = [row for row in images if row]
    group_bytes = [50 * len(cache.read(row) or b"") for row in rows]
    assert 2**17 < min(group_bytes) <= max(group_bytes) < 2**18
    cache.read(rows[-num_kept])  # now the newest
    count_bytes()
    for row in rows[-num_kept:]:
        cache.read(row)
    assert count_bytes() == 0
    for row in rows[:-num_kept]:
        cache.read(row)
        assert count_bytes() >= 2**17


def test_verification_reads_each_shard_once(many: str, count_bytes: Callable[[], int]) -> None:
    size = sum(map(len, contents(many).values()))
    images = DataSource(root=many).read()
    count_bytes()
    verify(images, workers=4)
    assert 0.9 * size < count_bytes() < 1.1 * size


def test_verified_images_are_remembered(data: Path, tmp_path: Path, make_storage: MakeStorage) -> None:
    out, remembered = make_storage("s3"), tmp_path / "verified.json"
    pack(data, out)
    first = verify(DataSource(root=out).read(), remembered=remembered)

    def refuse(description: str, total: int, unit: str = "images") -> None:
        raise AssertionError("decodes images again")

    assert verify(DataSource(root=out).read(), remembered=remembered, progress=refuse) == first
    fingerprint = ground_truth_fingerprint(first)
    system, path = file_system(out)
    copy = write_toy(tmp_path / "copy")
    Image.new("RGB", (48, 40)).save(copy / "2.png")
    pack(copy, str(tmp_path / "other"))
    system.put_file(str(tmp_path / "other" / FIRST), f"{path}/{FIRST}")
    images = DataSource(root=out).read()
    assert ground_truth_fingerprint(images) != fingerprint
    with pytest.raises(AssertionError, match="again"):
        verify(images, remembered=remembered, progress=refuse)


def test_a_replaced_shard_is_read_again(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    pack(data, str(out))
    images = DataSource(root=str(out)).read()
    before, stamp = read_bytes(images.samples[0].image), file_stamp(images.samples[0].image)
    content = (out / "data-00001-of-00003.parquet").read_bytes()
    time.sleep(0.01)
    (out / FIRST).write_bytes(content)
    assert file_stamp(images.samples[0].image) != stamp
    assert read_bytes(images.samples[0].image) == (data / "3.png").read_bytes() != before


@pytest.mark.parametrize("kind", ["folder", "s3"])
def test_forked_processes_read_shards_that_their_parent_has_read(
    data: Path, kind: str, make_storage: MakeStorage
) -> None:
    out = make_storage(kind)
    pack(data, out)
    images = [sample.image for sample in DataSource(root=out).read().samples]
    expected = [read_bytes(image) for image in images]
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map_async(read_bytes, images).get(timeout=60) == expected


# Damage


def write_index(path: Path, index: dict[str, object], schema: pa.Schema | None = None) -> None:
    """Write a shard of one row with any index, whose digest is right."""
    schema = schema or shard_schema("images")
    row = {"id": "x", "image": {"bytes": b"x", "path": "x"}, "tags": [], "split": None, "mask": None}
    content = json.dumps(index).encode()
    path.parent.mkdir(exist_ok=True)
    with pq.ParquetWriter(path, schema) as writer:
        writer.write_table(pa.Table.from_pylist([row], schema))
        writer.add_key_value_metadata({INDEX_ENTRY: _digest(content) + b" " + content})


GOOD_INDEX = {
    "version": 1, "kind": "images", "key": "", "classes": ["a", "b"], "split": None, "ids": ["x"], "suffixes": [".png"],
    "tags": [[1]], "has_mask": "0", "left_out": [],
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": ["../../etc/passwd"]}, "id ..*etc/passwd'*, which is not a safe relative path"),
        ({"ids": ["/etc/passwd"]}, "not a safe"),
        ({"ids": [""]}, "not a safe"),
        ({"ids": ["a//b"]}, "not a safe"),
        ({"ids": ["a\x00b"]}, "not a safe"),
        ({"ids": ["a\\..\\b"]}, "not a safe"),
        ({"ids": ["x" * 2000]}, "the id 'xxx"),
        ({"ids": ["x", "y"]}, "lists of different lengths"),
        ({"ids": [7]}, "valid string"),
        ({"tags": [[3]]}, "tags that are not ids"),
        ({"tags": [[0]]}, "tags that are not ids"),
        ({"tags": [[2, 1]]}, "tags that are not ids"),
        ({"classes": ["a", "a"]}, "not unique"),
        ({"suffixes": [".exe"]}, "unknown kind"),
        ({"version": 2}, "Input should be 1"),
        ({"kind": "masks"}, "holds masks, not images"),
        ({"ids": [], "suffixes": [], "tags": [], "has_mask": ""}, "another number of rows"),
    ],
)
def test_an_index_is_checked(tmp_path: Path, change: dict[str, object], message: str) -> None:
    file = tmp_path / "out" / "data-00000-of-00001.parquet"
    write_index(file, GOOD_INDEX)
    assert [s.id for s in DataSource(root=str(file.parent)).read().samples] == ["x"]
    write_index(file, GOOD_INDEX | change)
    with pytest.raises(DataError, match=f"data-00000-of-00001.parquet.*{message}") as raised:
        DataSource(root=str(file.parent)).read()
    assert "\n" not in str(raised.value)


def test_wrong_columns_and_foreign_parquet_files(tmp_path: Path) -> None:
    file = tmp_path / "data-00000-of-00001.parquet"
    write_index(file, GOOD_INDEX, pa.schema([("id", pa.string()), ("tags", pa.list_(pa.string()))]))
    with pytest.raises(DataError, match=r"data-00000-of-00001\.parquet: has other columns than a shard of images"):
        DataSource(root=str(tmp_path)).read()
    pq.write_table(pa.table({"id": ["x"]}), file)
    with pytest.raises(DataError, match=r"00001\.parquet: is not a shard of tagmask .* `tagmask shard`"):
        DataSource(root=str(tmp_path)).read()


@pytest.mark.parametrize("kind", ["folder", "memory"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "empty", "damaged"])
def test_a_bad_shard_is_named_and_can_be_left_out(
    data: Path, kind: str, damage: str, make_storage: MakeStorage
) -> None:
    out = make_storage(kind)
    pack(data, out)
    system, path = file_system(out)
    content = system.cat_file(f"{path}/{FIRST}")
    if damage == "missing":
        system.rm_file(f"{path}/{FIRST}")
    else:
        changed = {"truncated": content[:-100], "empty": b"", "damaged": content[:-500] + b"x" * 300 + content[-200:]}
        system.pipe_file(f"{path}/{FIRST}", changed[damage])
    images = DataSource(root=out).read()
    with pytest.raises(DataError, match=FIRST):
        verify(images)
    assert [s.id for s in verify(images, skip_bad=True).samples] == list("34567")


def test_shards_of_two_data_sets(data: Path, tmp_path: Path) -> None:
    pack(data, str(tmp_path / "out"))
    pack(data, str(tmp_path / "other"), images_per_shard=4)
    (tmp_path / "other/data-00000-of-00002.parquet").rename(tmp_path / "out/data-00000-of-00002.parquet")
    with pytest.raises(DataError, match=r"data-00000-of-00002.parquet and data-00000-of-00003.parquet, of two data"):
        DataSource(root=str(tmp_path / "out")).read()


def test_flipped_bytes_are_noticed(data: Path, tmp_path: Path) -> None:
    """No mutation of a shard gives a traceback, or another image than the one that was packed."""
    pack(data, str(tmp_path / "out"))
    file = tmp_path / "out" / FIRST
    content, rng = file.read_bytes(), random.Random(0)
    (tmp_path / "fuzz").mkdir()
    target = tmp_path / "fuzz" / "data-00000-of-00001.parquet"
    packed = {s.id: read_bytes(s.image) for s in read_files(data).samples}
    outcomes = set()
    for _ in range(150):
        target.write_bytes(mutate([content], "binary", rng))
        try:
            for sample in DataSource(root=str(target.parent)).read().samples:
                assert read_bytes(sample.image) == packed[sample.id]
                assert sample.mask is not None
                sample.mask.read()
        except TagmaskError as error:
            outcomes.add("refused" if str(target) in str(error) and "\n" not in str(error) else str(error))
    assert outcomes == {"refused"}


def test_safe_ids() -> None:
    assert all(map(is_safe_id, ["a", "a/b.c", "späte Äpfel/1", "..a", "a..b/c"]))
    assert not any(map(is_safe_id, ["..", "a/..", "./a", "a/", "/a", "\ud800", "a\nb", "a\\..\\b"]))


def test_addresses_of_rows() -> None:
    row = ShardRow.parse("s3://b/train-00003-of-00012.parquet#17.jpg")
    assert row == ShardRow("s3://b/train-00003-of-00012.parquet", 17, "image", ".jpg")
    for text in ("a.parquet#0", "a.parquet#7:mask", "a#b.parquet#1.jpg"):
        assert str(ShardRow.parse(text)) == text
    assert not any(map(ShardRow.parse, ["a.parquet", "a.jpg", "a.parquet#", "a.parquet#x", "b.jpg#1", "#1"]))
