from __future__ import annotations

from app.data.file_tree import few_of, images_below, walk


def test_files_are_sorted_by_what_they_are(tmp_path):
    for name in ("a/P-t1n.nii.gz", "a/P.json", "a/x.pdf", "b/scan.mgz", ".hidden/y.nii"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "empty").mkdir()
    tree = walk(tmp_path)
    assert [p.name for p in tree.images] == ["P-t1n.nii.gz", "scan.mgz"]
    assert [p.name for p in tree.strays] == ["x.pdf"]
    assert [p.name for p in tree.empty] == ["empty"]


def test_dicom_is_counted_by_folder(tmp_path):
    for number in range(5):
        (tmp_path / f"{number}.dcm").touch()
    tree = walk(tmp_path)
    assert tree.dicom == {tmp_path: 5}
    assert not tree.strays


def test_excluded_folders_are_left_out(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x.nii").touch()
    assert not walk(tmp_path, exclude=[tmp_path / "out"]).images


def test_images_below_follow_links_once(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.nii").touch()
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    assert images_below(tmp_path) == [tmp_path / "a" / "x.nii"]


def test_few_are_named_and_many_counted(tmp_path):
    paths = [tmp_path / str(i) for i in range(5)]
    assert few_of(paths).endswith("2 and 2 more")
    assert few_of(paths[:1]) == str(paths[0])
