"""Reading tag tables, and images whose tags are in a table."""

import json
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tagmask.data import class_names
from tagmask.data.samples import PngMask, TaggedImages
from tagmask.data.table_reader import read_table
from tagmask.data.tag_table import read_tag_table
from tagmask.errors import DataError


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    for name in ("a.jpg", "b.png", "c.JPG", "deep/er/d.jpg"):
        save_image(folder / name)
    return folder


def save_image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 3)).save(path)


def read(folder: Path, text: str | bytes, name: str = "tags.csv", **options: object) -> TaggedImages:
    table = folder.parent / name
    table.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_table(folder, read_tag_table(table), **options)


def tags_of(images: TaggedImages) -> dict[str, list[str]]:
    return {s.id: [images.classes[k - 1] for k in s.tags or ()] for s in images.samples}


def errors(images: TaggedImages) -> list[str]:
    return [str(problem) for problem in images.problems if problem.severity == "error"]


def warnings(images: TaggedImages) -> list[str]:
    return [str(problem) for problem in images.problems if problem.severity == "warning"]


ALL = {"a": ["cat"], "b": ["cat", "dog"], "c": [], "deep/er/d": ["dog"]}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("tags.csv", "image,tags\na.jpg,cat\nb.png,dog; cat \nc.JPG,\ndeep/er/d.jpg,dog;dog;\n"),
        ("tags.csv", "\ufeffimage,tags\r\na,cat\r\nb,dog;cat\r\n\r\nc,\r\ndeep/er/d,dog\r\n"),  # as Excel saves it
        ("tags.csv", 'Image , Tags,,\n"a.jpg", "cat",,\n b , cat;dog\nc.jpg,background,,\nd,dog\n,,,\n'),
        ("tags.tsv", "tags\timage\ncat\ta\ncat;dog\tb\n\tc\ndog\t deep\\er\\d.jpg\n"),
        ("tags.txt", "image\ttags\na\tcat\nb\tcat;dog\nc\t\nd\tdog\n"),
        ("tags.csv", 'image;tags\r\na.jpg;cat\r\nb.png;"cat;dog"\r\nc;\r\nd;dog\r\n'),  # as Excel in German saves it
        ("tags.csv", "image,dog,cat\na,0,1\nb,TRUE,true\nc,,0\nd,1.0,False\n"),
        (
            "tags.jsonl",
            '{"image": "a", "tags": "cat"}\n{"image": "b", "tags": ["cat", "dog"]}\n\n'
            '{"image": "c", "tags": null}\n{"image": "d", "tags": ["dog"]}',
        ),
        (
            "tags.ndjson",
            '{"image": "a", "cat": true}\n{"image": "b", "cat": 1, "dog": 1}\n{"image": "c"}\n'
            '{"image": "d", "dog": 1, "cat": 0}',
        ),
    ],
)
def test_equivalent_tables(photos: Path, name: str, text: str) -> None:
    images = read(photos, text, name)
    assert images.problems == ()
    assert images.classes == ("cat", "dog")
    assert tags_of(images) == ALL
    assert images.samples[2].image == str(photos / "c.JPG")


def test_the_order_is_that_of_the_table(photos: Path) -> None:
    assert [s.id for s in read(photos, "image,tags\nd,x\nc,x\na,x\nb,x\n").samples] == ["deep/er/d", "c", "a", "b"]


def test_names_are_equal_in_every_unicode_form(photos: Path) -> None:
    save_image(photos / "cafe\u0301.jpg")
    images = read(photos, "image,tags\na,e\u0301te\u0301\nb,été\ncafé.jpg,été\n")
    assert images.classes == ("été",)
    assert errors(images) == []
    assert images.samples[2].id == "café"


def test_tags_may_contain_any_characters(photos: Path) -> None:
    names = ["<script>alert(1)</script>", "a/b", "two words", "🐈", "../up", "comma, too"]
    rows = "".join(f'{i},"{name}"\n' for i, name in zip("abcd", names, strict=False)) + 'e,"../up;comma, too"\n'
    save_image(photos / "e.jpg")
    assert set(read(photos, "image,tags\n" + rows).classes) == set(names)


def test_files_that_differ_only_in_their_suffix_or_folder(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    for name in ("x/a.jpg", "y/a.jpg", "b.jpg", "b.png", "c.jpg", "c.jpg.png"):
        save_image(folder / name)
    images = read(folder, "image,tags\nx/a,cat\ny/a,cat\nb.jpg,cat\nb.png,cat\nc.jpg,cat\nc.jpg.png,cat\n")
    assert [s.id for s in images.samples] == ["x/a", "y/a", "b.jpg", "b.png", "c", "c.jpg"]
    ambiguous = read(folder, "image,tags\nb,cat\na.jpg,dog\nc.jpg,cow\n")
    assert len(ambiguous) == 1
    assert (
        f"tags.csv, line 2: the image 'b' may be b.jpg or b.png in {folder}; write the whole path"
        in errors(ambiguous)[0]
    )
    assert "'a.jpg' may be x/a.jpg or y/a.jpg" in errors(ambiguous)[1]


def test_images_that_do_not_exist(photos: Path) -> None:
    images = read(photos, "image,tags\na,cat\nnowhere.jpg,dog\n../photos.jpg,dog\n")
    assert list(tags_of(images)) == ["a"]
    assert errors(images)[0].endswith(
        f"tags.csv, line 3: there is no image 'nowhere.jpg' in {photos}; correct the name or remove the line."
    )
    assert len(errors(images)) == 2


def test_images_outside_the_folder_and_at_urls(photos: Path, tmp_path: Path) -> None:
    save_image(tmp_path / "other" / "x.jpg")
    outside = str(tmp_path / "other" / "x.jpg")
    urls = ["s3://bucket/y/a.jpg", "https://host/z.jpg?key=1", "https://host/z.jpg?key=2", "https://host/../../z.png"]
    text = "image,tags\n" + "".join(f"{name},cat\n" for name in [outside, str(photos / "a.jpg"), *urls])
    images = read(photos, text)
    assert errors(images) == []
    assert [s.image for s in images.samples] == [outside, str(photos / "a.jpg"), *urls]
    ids = [s.id for s in images.samples]
    assert ids[:3] == [outside[1:-4], "a", "bucket/y/a"]
    assert len(set(ids)) == 6
    assert not any(i.startswith("/") or ".." in i for i in ids)


def test_folder_at_a_url(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("image,tags\nx/a.jpg,cat\ngs://other/b.jpg,\n")
    images = read_table("s3://bucket/photos/", read_tag_table(table))
    assert [s.image for s in images.samples] == ["s3://bucket/photos/x/a.jpg", "gs://other/b.jpg"]
    assert [s.id for s in images.samples] == ["x/a", "other/b"]


def test_duplicates(photos: Path) -> None:
    images = read(photos, "image,tags\na,cat;dog\na.jpg,dog;cat\nb,cat\nb,dog\nb,cat\nc,cat\n")
    assert list(tags_of(images)) == ["a", "c"]
    assert next(d for d in warnings(images) if "line 3" in d).endswith(
        "lists 'a.jpg' again, after line 2; remove one of the lines."
    )
    assert errors(images)[0].endswith(
        "tags.csv, line 5: lists 'b' again, after line 4, with other tags; remove the wrong line."
    )
    assert len(errors(images)) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"tags\.csv is empty; begin it with a line like image,tags"),
        ("image,tags\n", "lists no image"),
        ("a.jpg,cat\nb.png,dog\n", "line 1 has no column 'image' but 'a.jpg, cat'; begin the table with"),
        ("image,tags,colour\na,cat,red\n", "line 1 has an unknown column 'colour'.*; rename or remove it"),
        ("image,tags,splt\na,cat,train\n", "unknown column 'splt': did you mean 'split'"),
        ("image,tags,tags\na,cat,\n", "names the column 'tags' twice"),
        ("image,,tags\na,,cat\n", "has a column without a name"),
        ("image\na\n", "has no column for the tags"),
        ("image|tags\na|cat\n", "no column 'image'"),
        (
            "image,tag\na,cat\nb,dog\n",
            "line 2: has 'cat' in the column 'tag', which is neither 0 nor 1; .*name the column 'tags'",
        ),
        ('image,tags\na,"cat\n', r"line 2 is not valid CSV \(unexpected end of data\); check the quotes"),
        (b"image,tags\na,cat\nb,\xe9t\xe9\n", "line 3 is not UTF-8; save the file as UTF-8"),
        ("image,tags\na,cat\n".encode("utf-16"), "line 1 is not UTF-8"),
        ("image,tags\na,cat,dog\n", "has 3 columns, but the first line names 2; separate tags by ';'"),
    ],
)
def test_unreadable_tables(photos: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(photos, text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"image": "a"}]', "line 1 is not a JSON object; write one object per line"),
        ('{"image": "a", "tags": ""}\n{"image": \n', "line 2 is not JSON"),
        ('{"image": "a", "tags": "\\ud800"}', "line 1 is not JSON"),
        ("[" * 100_000, "line 1 is not JSON"),
        ('{"image": "a", "tags": {"cat": 1}}', "line 1: has tags that are neither text nor a list"),
        ('{"image": 3, "tags": "cat"}', "line 1: names no image"),
        ('{"tags": "cat"}', "no column 'image'"),
    ],
)
def test_unreadable_json_lines(photos: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(photos, text, "tags.jsonl")


def test_a_bad_line_affects_only_its_image(photos: Path) -> None:
    images = read(photos, "image,tags\na,cat\nb,cat,dog\n,cat\nc,dog\n")
    assert tags_of(images) == {"a": ["cat"], "c": ["dog"]}
    assert [e.partition("tags.csv, ")[2] for e in errors(images)] == [
        "line 4: names no image; write the name of the image or remove the line.",
        "line 3: has 3 columns, but the first line names 2; separate tags by ';', and quote values that "
        "contain a comma.",
    ]
    one_hot = read(photos, "image,cat,dog\na,1,0\nb,1,2\n")
    assert tags_of(one_hot) == {"a": ["cat"]}
    assert "line 3: has '2' in the column 'dog', which is neither 0 nor 1" in errors(one_hot)[0]


def test_missing_table_and_folder(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing\.csv cannot be read \(No such file or directory\)"):
        read_tag_table(tmp_path / "nothing.csv")
    with pytest.raises(DataError, match=r"the folder .*nowhere does not exist"):
        read(tmp_path / "nowhere", "image,tags\na,cat\n")


def test_split(photos: Path) -> None:
    text = "image,tags,split\na,cat,train\nb,dog,val\nc,cow, train\nnowhere,cat,val\na,cat,val\n"
    train = read(photos, text, split="train")
    assert tags_of(train) == {"a": ["cat"], "c": ["cow"]}
    assert train.classes == (
        "cat",
        "cow",
        "dog",
    )  # those of the whole table, so that the class ids do not depend on the split
    assert errors(train) == []
    assert train.name == "photos (train)"
    assert len(errors(read(photos, text, split="val"))) == 1
    with pytest.raises(DataError, match="has no line of split 'vall': did you mean 'val'"):
        read(photos, text, split="vall")
    with pytest.raises(DataError, match="has no column 'split'"):
        read(photos, "image,tags\na,cat\n", split="train")


def test_class_list(photos: Path, tmp_path: Path) -> None:
    listed = tmp_path / "names.txt"
    listed.write_text("\ufeffbackground\nzebra\n\ncat \r\n")
    images = read(photos, "image,tags\na,cat\nb,catt\nc,zebra;cat\n", class_list=listed)
    assert images.classes == ("zebra", "cat")
    assert [s.tags for s in images.samples] == [(2,), (1, 2)]
    assert errors(images)[0].endswith(
        "line 3: the tag 'catt' is not one of the classes; correct it or add it to the class list: did you mean 'cat'?"
    )
    with pytest.raises(DataError, match="line 1 has an unknown column 'catt': did you mean 'cat'"):
        read(photos, "image,catt\na,1\n", class_list=listed)
    listed.write_text("cat\ndog\ncat\n")
    with pytest.raises(DataError, match=r"names\.txt, line 3 repeats 'cat' of line 1"):
        read(photos, "image,tags\na,cat\n", class_list=listed)
    listed.write_text("\n")
    with pytest.raises(DataError, match="names no class"):
        read(photos, "image,tags\na,cat\n", class_list=listed)
    (photos / "classes.txt").write_text("dog\ncat")
    assert read(photos, "image,tags\na,cat\n").classes == ("dog", "cat")


def test_masks_and_saliency(photos: Path, tmp_path: Path) -> None:
    for name in ("masks/a.png", "masks/deep/er/d.png", "photos/saliency/a.png"):
        save_image(tmp_path / name)
    text = "image,tags\na,cat\nb,cat\nc,\ndeep/er/d,cat\n"
    images = read(photos, text, masks=tmp_path / "masks", saliency=photos / "saliency")
    assert errors(images) == warnings(images) == []  # saliency/a.png is not read as an image
    assert [s.mask and s.mask.path.name for s in images.samples if isinstance(s.mask, PngMask | None)] == [
        "a.png",
        None,
        None,
        "d.png",
    ]
    assert images.samples[0].saliency == photos / "saliency" / "a.png"
    (tmp_path / "empty").mkdir()
    other = read(photos, text, masks=tmp_path / "empty")
    assert any("has no PNG that belongs to any of the images" in d and "a.png" in d for d in warnings(other))
    with pytest.raises(DataError, match="does not exist"):
        read(photos, text, masks=tmp_path / "nowhere")


def test_unlisted_images_are_counted(photos: Path) -> None:
    images = read(photos, "image,tags,split\na,cat,train\nb,cat,val\n", split="train")
    assert [d.partition("tags.csv: ")[2] for d in warnings(images)] == [
        "does not list 2 images of the folder (c.JPG, deep/er/d.jpg); add lines for them if they are to be used."
    ]


def test_hidden_and_unreadable_names(photos: Path) -> None:
    save_image(photos / ".hidden.jpg")
    save_image(photos / ".git" / "x.jpg")
    (photos / "loop").symlink_to(photos)
    with open(bytes(photos) + b"/\xff.jpg", "wb") as file:
        file.write(b"x")
    images = read(photos, "image,tags\na,cat\nb,\nc,\nd,\n")
    assert warnings(images) == []
    assert errors(images) == ["'\\udcff.jpg': has a file name that is not valid UTF-8; rename the file."]


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(st.text(), st.binary(), st.text(alphabet='image,tagsplt;\n"\t\r 01{}[]:\\ud8')),
    st.sampled_from(["csv", "tsv", "jsonl"]),
)
def test_every_text_is_a_table_or_a_data_error(
    tmp_path_factory: pytest.TempPathFactory, text: str | bytes, suffix: str
) -> None:
    folder = tmp_path_factory.getbasetemp() / "fuzz"
    save_image(folder / "i" / "a.jpg")
    header = '{"image": "a", "tags": "cat"}\n' if suffix == "jsonl" else "image,tags\na,cat\n"
    raw = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    for content in (raw, header.encode() + raw):
        message = str(folder)
        try:
            images = read(folder / "i", content, f"t.{suffix}")
        except DataError as error:
            message = str(error)
        else:
            json.dumps([images.classes, [s.id for s in images.samples], [str(p) for p in images.problems]]).encode()
        assert str(folder) in message


WORDS = st.text(
    st.characters(exclude_characters=';,"\n\r\t', exclude_categories=("C", "Z", "M", "Lm", "Lo")), min_size=1
)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(WORDS, st.booleans(), min_size=1, max_size=5))
def test_one_hot_columns_give_the_same_tags(tmp_path_factory: pytest.TempPathFactory, has_tag: dict[str, bool]) -> None:
    has_tag = {unicodedata.normalize("NFC", name): value for name, value in has_tag.items()}
    if {name.casefold() for name in has_tag} & {"image", "tags", "split", "background"}:
        return
    path = tmp_path_factory.getbasetemp() / "one.csv"
    path.write_text(
        "image," + ",".join(has_tag) + "\na," + ",".join("01"[yes] for yes in has_tag.values()) + "\n", "utf-8"
    )
    table = read_tag_table(path)
    assert table.names == tuple(sorted(has_tag))
    assert set(table.rows[0].tags) == {name for name, yes in has_tag.items() if yes}


def test_a_spreadsheet_is_refused(photos: Path) -> None:
    with pytest.raises(DataError, match=r"tags\.xlsx is not an Excel workbook"):
        read(photos, b"PK", "tags.xlsx")


def test_images_of_an_unknown_format(photos: Path) -> None:
    (photos / "e.PSD").write_bytes(b"")
    images = read(photos, "image,tags\na,cat\ne.psd,cat\n")
    assert [p.split(": ", 1)[1] for p in errors(images)] == [
        f"e.psd in {photos} has a format that cannot be read; convert it to JPEG or PNG."
    ]


def test_columns_of_any_name(photos: Path, tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    table.write_text("File name,who,Labels\n1.jpg,me,cat;dog\n")
    with pytest.raises(DataError, match=r"has no column 'image' but 'File name, who, Labels'; .* with --image-column"):
        read_tag_table(table)
    with pytest.raises(DataError, match=r"has no column 'labls' \(--tags-column\): did you mean 'Labels'"):
        read_tag_table(table, image_column="File name", tags_column="labls")
    rows = read_tag_table(table, image_column="file name", tags_column="Labels").rows
    assert [(row.image, row.tags) for row in rows] == [("1.jpg", ("cat", "dog"))]
    table.write_text("File name,cat,dog\n1.jpg,1,0\n")
    assert read_tag_table(table, image_column="File name").rows[0].tags == ("cat",)


@pytest.mark.parametrize(
    ("names", "expected_warning"),
    [
        (["photos/1.jpg", "photos/sub/2.jpg"], None),
        (["../data/photos/1.jpg", "../data/photos/sub/2.jpg"], None),
        (["/home/me/photos/1.jpg", "/home/me/photos/sub/2.jpg"], None),
        (["C:\\data\\photos\\1.jpg", "C:\\data\\photos\\sub\\2.jpg"], None),
        (["photos/1.jpg", "sub/2.jpg"], None),
        (["imgs/1.jpg", "imgs/sub/2.jpg"], "begins its paths with 'imgs/', which "),
    ],
)
def test_a_prefix_that_all_paths_have(tmp_path: Path, names: list[str], expected_warning: str | None) -> None:
    root = tmp_path / "photos"
    for name in ("1.jpg", "sub/2.jpg"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2)).save(root / name)
    table = tmp_path / "tags.csv"
    table.write_text("image,tags\n" + "".join(f"{name},cat\n" for name in names))
    images = read_table(root, read_tag_table(table))
    assert [sample.id for sample in images.samples] == ["1", "sub/2"]
    texts = [str(problem) for problem in images.problems]
    assert texts == [] if expected_warning is None else expected_warning in texts[0]


def test_the_prefix_of_another_folder_is_not_removed(tmp_path: Path) -> None:
    """The tags of train/1.jpg must not become those of val/1.jpg."""
    for name in ("train/1.jpg", "val/1.jpg"):
        (tmp_path / name).parent.mkdir()
        Image.new("RGB", (2, 2)).save(tmp_path / name)
    table = tmp_path / "tags.csv"
    for rows in ("train/1.jpg,cat\n", "train/1.jpg,cat\nother/2.jpg,dog\n"):
        table.write_text(f"image,tags\n{rows}")
        images = read_table(tmp_path / "val", read_tag_table(table))
        assert len(images) == 0
        assert "there is no image 'train/1.jpg'" in str(images.problems[0])


def test_only_the_first_misspelled_tags_get_a_hint(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Comparing a name with all classes takes milliseconds, and a table can have a million rows."""
    calls: list[str] = []
    monkeypatch.setattr(class_names, "did_you_mean", lambda name, known: calls.append(name) or ": did you mean 'cat'?")
    (tmp_path / "classes.txt").write_text("cat\n")
    for i in range(300):
        Image.new("RGB", (2, 2)).save(photos / f"n{i}.png")
    rows = "".join(f"n{i}.png,cta{i}\n" for i in range(300))
    images = read(photos, f"image,tags\n{rows}", class_list=tmp_path / "classes.txt")
    problems = errors(images)
    assert len(problems) == 300
    assert len(calls) == 100
    assert "did you mean" in problems[99]
    assert problems[299].endswith("correct it or add it to the class list.")


def test_messages_do_not_repeat_long_cells(photos: Path) -> None:
    long = "x" * 5000
    for text in (
        f"image,tags\n{long},cat\na.jpg,cat\n",
        f"image,tags,{long}\na,b,c\n",
        f"image,{long}\na.jpg,{long}\n",
    ):
        try:
            messages = [str(problem) for problem in read(photos, text).problems]
        except DataError as error:
            messages = [str(error)]
        assert messages
        assert all(len(message) < 500 + len(str(photos)) for message in messages), messages


def test_a_folder_with_none_of_the_images_of_a_long_table_gets_one_error(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    save_image(tmp_path / "photos" / "other.jpg")
    table = tmp_path / "tags.csv"
    table.write_text("image,tags\n" + "".join(f"{n}.jpg,cat\n" for n in range(9)))
    with pytest.raises(
        DataError, match=r"names 9 images \(first: 0.jpg\), and .*photos has none.* \(first: other.jpg\)"
    ):
        read_table(tmp_path / "photos", read_tag_table(table))
