"""Stages, reasons and failures in a plain sentence each, for readers who have never seen the program."""

from __future__ import annotations

from typing import Any

REASONS: dict[str, str] = {
    "duplicate_row": "An earlier row has the same URL and the same text.",
    "same_url": "An earlier row has the same URL. The image is fetched once; this row's text went to that row.",
    "repeated_text": "Too many different images carry this very text, so it describes none of them.",
    "empty": "There is no text.",
    "too_short": "The text has too few characters.",
    "too_long": "The text has too many characters.",
    "too_few_words": "The text has too few words.",
    "too_many_words": "The text has too many words.",
    "boilerplate": "The text is mostly a stock phrase, such as a cookie notice or a button's label.",
    "file_name": "The text is a file name or a bare number and says nothing of the image.",
    "url_text": "The text is mostly web addresses.",
    "emoji": "The text has an emoji.",
    "language": "The text is in a language that the recipe does not ask for.",
    "low_letters": "Too little of the text is letters.",
    "repetition": "The text repeats itself.",
    "low_entropy": "The text's words are too predictable.",
    "perplexity": "A language model finds the text too predictable, or too odd to be a sentence.",
    "low_complexity": "The text says nothing of any thing that it names.",
    "no_action": "Nothing happens in the text: it has no full verb.",
    "opted_out": "The site asks that its images not be used. The image was not stored.",
    "robots_refused": "The site's robots.txt does not allow fetching the image.",
    "too_small": "The image has too few pixels.",
    "aspect": "The image is far too wide or too high.",
    "exact_dup": "Another row has the same image, byte for byte, and was kept in its place.",
    "near_dup": "Another row has nearly the same image and was kept in its place.",
    "semantic_dup": "Another row shows nearly the same thing and was kept in its place.",
    "low_clip": "Image and text do not fit: the score is below the limit.",
    "high_clip": "The score is above the limit; often the text is written in the image itself.",
    "low_mllm": "A multimodal model gave the pair a score below the limit.",
    "low_trust": "The generated caption is trusted less than the recipe asks for.",
    "bad_caption": "The generated caption has a fault that the recipe does not accept.",
    "contaminated": "The image or its text is in an evaluation set, and training on it would spoil the measurement.",
    "balanced_out": "There are many rows of its kind (its concept, cluster, tag or source), and it was not among those drawn.",
    "below_cut": "It did not rank among the share of rows that the recipe keeps.",
    "expression": "It does not satisfy the recipe's condition.",
    "not_listed": "Its id is not in the recipe's list.",
    "forgotten": "It is on a list of what must not be used again.",
    "custom": "A rule of the user's own; its words stand with each row.",
}

FAILURES: dict[str, str] = {
    "bad_row": "The line of the input is no row: no URL, or one that cannot be read.",
    "missing_image": "There is a text and no image to it.",
    "unreadable": "The file cannot be read to its end.",
    "forgotten": "It was removed for good, and nothing of it is kept.",
    "unsafe_path": "The name leads out of the folder or archive and was not followed.",
    "bad_response": "The server's answer breaks the rules of HTTP.",
    "dns": "The host's name does not exist any more.",
    "connect": "The host did not answer.",
    "tls": "The secure connection could not be made.",
    "reset": "The server broke the connection off.",
    "timeout": "The server took too long.",
    "http_4xx": "The server says that the image is not there (any more) or not for us.",
    "http_5xx": "The server itself failed.",
    "rate_limited": "The server asked to be left alone for a while.",
    "too_many_redirects": "The address leads from one address to the next without end.",
    "short_body": "The answer ended before it was complete.",
    "empty_body": "The answer was empty.",
    "too_large": "The file is larger than the recipe allows.",
    "not_an_image": "What came is no image but a page or other text.",
    "blocked_address": "The address leads into a private network and was not asked.",
    "hash_mismatch": "The image is not the one that the input names: its digest differs.",
    "corrupt_image": "The file is damaged and cannot be decoded whole.",
    "decoder_crashed": "Decoding the image crashed; the program that decodes stands apart, so that only this row was lost.",
    "decoder_hung": "Decoding the image took too long.",
    "decoder_memory": "Decoding the image took too much memory.",
    "pixel_limit": "The image has more pixels than the recipe allows.",
    "unsupported_format": "The file has a format that is not read.",
    "model_error": "The model failed on this row.",
    "bad_answer": "The model's answer did not have the form that was asked for.",
    "refusal": "The model refused to answer.",
    "truncated": "The model's answer was cut before its end.",
    "stage_error": "The stage raised an error on this row alone.",
    "worker_died": "The worker process died on this row.",
    "hung": "The stage did not come back from this row in time.",
}

STAGES: dict[str, str] = {
    "url_dup": "Of rows with the same image address, one stays and takes over the texts of the others.",
    "repeated_text": "Drops texts that many different images carry.",
    "text_rules": "Cleans every text, measures it, and drops rows without a usable one.",
    "download": "Fetches every image, checks that it is whole, and stores it.",
    "clip_score": "A model compares image and text: the better they fit, the higher the score.",
    "exact_dup": "Of rows with the same image, byte for byte, one stays and takes over the texts of the others.",
    "image_hash": "Hashes every image by what it shows.",
    "near_dup": "Finds all pairs of images that look nearly the same.",
    "semantic_dup": "Finds all pairs of images that show nearly the same thing, by their embeddings.",
    "crop_dup": "Lays small copies of like images over each other, so that cropped, framed and written-on copies are told from other pictures.",
    "dedup": "Of rows with the same or nearly the same image, one stays and takes over the texts of the others.",
    "decontaminate": "Keeps images and texts of evaluation sets out of the data.",
    "known_dup": "Leaves out what an earlier run has already.",
    "refuse": "Leaves out what is on a list of things to be forgotten.",
    "balance": "Thins out what is common: only some rows of each large group stay, drawn at random.",
    "clusters": "Puts images of one kind into one cluster.",
    "nearest_texts": "Finds texts of a collection that are most like each image.",
    "levels": "Turns a score into a few levels.",
    "concepts": "Finds the things that each text names.",
    "noise_prob": "How likely a text does not belong to its image, by how hard it was to learn.",
    "select": "The last cut: conditions, lists of ids, and shares of all rows.",
    "corrupt": "Swaps the texts of some rows on purpose, so that scores can be put to the test.",
}


# Columns of numbers that several stages of one recipe may write, so that they are no core columns: (stage, column) -> meaning.
MEANINGS: dict[tuple[str, str], str] = {
    ("caption_check", "repeated"): "share of the caption's word 4-grams that stood in it before, 0 to 1",
    ("caption_check", "s_xt"): "cosine of image and alt-text",
    ("caption_check", "s_xc"): "cosine of image and caption",
    ("caption_check", "s_tc"): "cosine of alt-text and caption",
    ("caption_check", "confirmed"): "share of the caption's claims that were confirmed, 0 to 1",
    ("caption_check", "trust"): "how far the caption can be trusted, 0 to 1: its form, and how well it fits the image",
}


def about(plugin: Any) -> str:
    """What a source, stage or job does, in a sentence: from above, else the first one of its own description."""
    text = " ".join((type(plugin).__doc__ or "").replace("`", "").split())
    return STAGES.get(plugin.name) or (text.split(". ")[0].rstrip(".:") + "." if text else "")


def in_words(status: str, reason: str) -> str:
    """A sentence for a reason or failure; '' for one of a plug-in."""
    return (REASONS if status == "dropped" else FAILURES).get(reason, "")
