"""Chapter 1: reading documents as the tutorial does. (Chapter 17 has other ways.)"""

from microgpt import load_documents, read_documents


def test_the_tutorials_way_to_read_is_that_of_plain_files(tmp_path):
    path = tmp_path / "documents.txt"
    path.write_bytes("  ada \n\n \t\nsøren\nbob".encode())
    assert read_documents(path) == ["  ada ", "søren", "bob"] == load_documents(path)
