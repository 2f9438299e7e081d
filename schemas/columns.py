"""Every core column: its name, Arrow type, the stage that writes it, and one line of meaning."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from schemas.sample import SAMPLE_ID, TEXTS


@dataclass(frozen=True, slots=True)
class Column:
    """A core column. `stage` is the class of the stage that writes it; several may write the same name."""

    name: str
    type: pa.DataType
    stage: str
    meaning: str


# Where bytes lie, and when they came. They change when a retry writes another tar or the input is moved: outside every digest.
LOCATION_COLUMNS = frozenset({"tar", "offset", "size", "source_file", "source_offset", "source_size", "checked_at"})

CORE: tuple[Column, ...] = (
    Column("sample_id", SAMPLE_ID, "source", "128 bits of SHA-256 over source name, URL or path, and text; shown as hex"),
    Column("url", pa.string(), "source", "URL of the image as the input has it; null where it names none"),
    Column("path", pa.string(), "source", "path of the image relative to the input's folder; of a member of a tar: <tar>/<member>, of a cell: <file>/<row>"),
    Column("source_file", pa.string(), "source", "file of the input that holds the image: absolute path or URL; of a cell of a table <file>#<column>"),
    Column("source_offset", pa.int64(), "source", "first byte of the image in that file, of a cell its row; null where it is the whole file"),
    Column("source_size", pa.int64(), "source", "bytes of the image in that file"),
    Column("alt_text", pa.string(), "source", "text of the row as read, at most 64 KB"),
    Column("alt_text_cut", pa.bool_(), "source", "the text was longer than 64 KB and was cut"),
    Column("n_same_url", pa.int32(), "url_dup", "rows of the run with this URL"),
    Column("url_keeper", pa.string(), "url_dup", "sample_id (hex) of the row that stands for this URL"),
    Column("texts", TEXTS, "url_dup", "all texts of the row, best first once they are ranked"),
    Column("n_text", pa.int32(), "repeated_text", "distinct URLs that carry the first text"),
    Column("least_n_text", pa.int32(), "repeated_text", "fewest distinct URLs that carry one of the texts"),
    Column("text", pa.string(), "text_rules", "normalised text: Unicode NFC, entities decoded, white space folded"),
    Column("lang", pa.string(), "text_rules", "language of the text, ISO 639-1"),
    Column("lang_score", pa.float32(), "text_rules", "probability of that language, 0 to 1"),
    Column("n_words", pa.int32(), "text_rules", "words of the text"),
    Column("http_status", pa.int16(), "download", "status of the last response"),
    Column("content_type", pa.string(), "download", "Content-Type of the last response"),
    Column("opted_out", pa.string(), "download", "X-Robots-Tag values that opt out, null where none does"),
    Column("robots", pa.string(), "download", "'allowed' or why robots.txt refuses; null where it was not asked"),
    Column("checked_at", pa.timestamp("ms", "UTC"), "download", "when the server's headers or robots.txt were seen"),
    Column("raw_sha256", pa.binary(32), "download", "SHA-256 of the bytes as fetched"),
    Column("n_bytes", pa.int64(), "download", "bytes as fetched"),
    Column("image_sha256", pa.binary(32), "download", "SHA-256 of the bytes as stored (equal to raw_sha256 when kept)"),
    Column("tar", pa.string(), "download", "tar under blobs/ that holds the stored bytes"),
    Column("offset", pa.int64(), "download", "first byte of the image in that tar"),
    Column("size", pa.int64(), "download", "bytes of the stored image"),
    Column("width", pa.int32(), "download", "width in pixels of the stored image, orientation applied"),
    Column("height", pa.int32(), "download", "height in pixels of the stored image, orientation applied"),
    Column("original_width", pa.int32(), "download", "width in pixels as fetched"),
    Column("original_height", pa.int32(), "download", "height in pixels as fetched"),
    Column("format", pa.string(), "download", "format of the stored image: jpg, png or webp"),
    Column("clip_score", pa.float32(), "clip_score", "cosine of image and best text, rounded to 1e-4"),
    Column("image_emb", pa.binary(), "clip_score", "image embedding, float16, unit length"),
    Column("text_emb", pa.binary(), "clip_score", "embedding of the best text, float16, unit length"),
    Column("image_text_matching", pa.float32(), "mllm_score", "0 to 100: the text names what the image shows"),
    Column("object_detail_fulfillment", pa.float32(), "mllm_score", "0 to 100: details of objects in the text, and their agreement with the image"),
    Column("caption_text_quality", pa.float32(), "mllm_score", "0 to 100: the text as a text"),
    Column("semantic_understanding", pa.float32(), "mllm_score", "0 to 100: meaning that the text adds beyond what is seen"),
    Column("phash", pa.binary(), "image_hash", "64-bit DCT hash of the image, 8 bytes"),
    Column("phash_quality", pa.int16(), "image_hash", "how much there is to see, 0 (flat) to 100"),
    Column("phash_turned", pa.binary(), "image_hash", "hashes of the mirrored and rotated copies asked for, one behind another"),
    Column("pdq", pa.binary(), "image_hash", "256-bit PDQ hash of the image, 32 bytes"),
    Column("pdq_quality", pa.int16(), "image_hash", "PDQ's own quality, 0 (flat) to 100"),
    Column("pdq_turned", pa.binary(), "image_hash", "PDQ hashes of the mirrored and rotated copies asked for, one behind another"),
    Column("thumbnail", pa.binary(), "image_hash", "copy of the image: brightness 32 x 32, Cr and Cb 16 x 16, a byte each"),
    Column("dup_of", pa.string(), "exact_dup", "sample_id (hex) of the row kept in place of this one; dedup writes it too"),
    Column("kind", pa.string(), "exact_dup", "how the duplicate was found: bytes, near or semantic"),
    Column("distance", pa.int16(), "dedup", "bits between the row's hash and that of the row kept in its place"),
    Column("cosine", pa.float32(), "dedup", "cosine between the row's embedding and that of the row kept in its place"),
    Column("match", pa.float32(), "dedup", "how well the row's thumbnail and that of the row kept in its place fit when laid over each other, at most 1"),
    Column("contam_bytes", pa.string(), "decontaminate", "evaluation item with the same bytes, as <set>/<item>"),
    Column("contam_image", pa.string(), "decontaminate", "evaluation picture that agrees best among those near by hash"),
    Column("contam_distance", pa.int16(), "decontaminate", "bits between its nearest window's hash and the row's"),
    Column("contam_agreement", pa.float32(), "decontaminate", "how well the two pictures agree where they fit best, at most 1"),
    Column("contam_text", pa.string(), "decontaminate", "evaluation text that is most contained in one of the row's texts"),
    Column("contam_overlap", pa.float32(), "decontaminate", "share of its runs of eight words that the row's text has"),
    Column("contam_emb", pa.string(), "decontaminate", "evaluation image with the nearest embedding"),
    Column("contam_cosine", pa.float32(), "decontaminate", "cosine of the two embeddings, rounded to 1e-4"),
    Column("known_kind", pa.string(), "known_dup", "what an earlier run has of the row: url, bytes or near"),
    Column("known_item", pa.string(), "known_dup", "its row there, as <index>/<sample_id>"),
    Column("known_distance", pa.int16(), "known_dup", "bits between the two hashes"),
    Column("refused", pa.string(), "refuse", "what of the row is on a list of things to be forgotten: url, id or image"),
    Column("dup_component", pa.string(), "exact_dup", "sample_id (hex) of the kept row, for all rows of a component; dedup writes it too"),
    Column("cluster", pa.int32(), "clusters", "nearest cluster of the embedding; 0 has the most rows"),
    Column("clusters", pa.list_(pa.int32()), "clusters", "nearest clusters of the embedding, nearest first"),
    Column("cluster_cosine", pa.float32(), "clusters", "cosine of the embedding and the centroid of its nearest cluster"),
    Column("nearest_text", pa.string(), "nearest_texts", "the text of a file that is most like the image"),
    Column("nearest_texts", TEXTS, "nearest_texts", "texts of a file that are most like the image, with their cosine"),
    Column("text_cluster", pa.int32(), "nearest_texts", "cluster of texts that the image is nearest to"),
    Column("level", pa.int8(), "levels", "level of a score, 0 the lowest; the edges stand in the manifest"),
    Column("noise_prob", pa.float32(), "noise_prob", "probability that the text does not belong to the image, by how hard the pair was to learn"),
    Column("pair_loss", pa.float32(), "noise_prob", "loss of the pair after a short training"),
    Column("balance_reason", pa.string(), "balance", "why the row was put out; null where it stays"),
    Column("balance_detail", pa.string(), "balance", "the group that put the row out, its size, and how many of it stay"),
    Column("keep_probability", pa.float32(), "balance", "probability with which the row stays; its reciprocal is the weight that undoes the thinning"),
    Column("balance_t", pa.float64(), "balance", "least t of MetaCLIP's balancing from which on the row stays"),
    Column("matched_entries", pa.list_(pa.string()), "balance", "entries of the metadata that the row's texts match"),
)

CORE_BY_NAME = {column.name: column for column in CORE}
