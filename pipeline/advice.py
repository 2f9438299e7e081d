"""What to do about each failure code: one clause, for messages and for `pairmill failures`."""

from __future__ import annotations

from schemas.outcome import FailureCode

_ADVICE: dict[str, str] = {
    FailureCode.BAD_ROW: "check the input's columns (input.url, input.text)",
    FailureCode.FORGOTTEN: "nothing: it was removed for good",
    FailureCode.MISSING_IMAGE: "look where the images are: the caption, table or sample names one that is not there",
    FailureCode.UNREADABLE: "read the detail: the file is damaged, was cut, or may not be read by this user; copy it anew",
    FailureCode.UNSAFE_PATH: "put the file itself in the place of the link that leads out of the input",
    FailureCode.DNS: "check the resolver (/etc/resolv.conf) and the network",
    FailureCode.CONNECT: "check the network, the firewall and the proxy",
    FailureCode.TLS: "check the machine's clock and its CA certificates, and whether a proxy opens TLS connections",
    FailureCode.RESET: "check the network and the firewall, or lower the stage's concurrency",
    FailureCode.TIMEOUT: "check the bandwidth, lower the stage's concurrency or raise its time limit",
    FailureCode.HTTP_4XX: (
        "look at the status: 401, 403 or 451 on nearly all rows means that the servers refuse this client (user agent, address, login), "
        "404 or 410 that the pages are gone"
    ),
    FailureCode.HTTP_5XX: "the servers are in trouble, or a proxy is: wait, or lower the stage's per-host limit (of a model: its concurrency)",
    FailureCode.RATE_LIMITED: "lower the stage's per-host limit (of a model: its concurrency or requests_per_minute) and wait",
    FailureCode.BAD_RESPONSE: "the server or a proxy speaks no proper HTTP: try one of the addresses with curl",
    FailureCode.TOO_MANY_REDIRECTS: "nothing for single rows; on many raise max_redirects, or look whether a login page redirects for ever",
    FailureCode.SHORT_BODY: "nothing for single rows; on many look at the network or a proxy that cuts answers",
    FailureCode.EMPTY_BODY: "nothing for single rows; on many look at one address: the servers may refuse this client without a word",
    FailureCode.TOO_LARGE: "raise max_bytes where such images are wanted",
    FailureCode.BLOCKED_ADDRESS: "look whether the resolver answers with private addresses; for servers of your own there is allow_private",
    FailureCode.NOT_AN_IMAGE: "look at one page: a login page or a proxy may answer in place of the servers",
    FailureCode.HASH_MISMATCH: "the image changed since the table was made, or the table's column of hashes is of another file",
    FailureCode.CORRUPT_IMAGE: "nothing for single rows; on many fetch one by hand: a server, a proxy or the disk may damage files",
    FailureCode.PIXEL_LIMIT: "raise pixel_limit where such images are wanted",
    FailureCode.UNSUPPORTED_FORMAT: "nothing: no decoder here reads it",
    FailureCode.DECODER_CRASHED: "nothing for single rows; on many read the details: a codec is broken here, install the requirements anew",
    FailureCode.DECODER_HUNG: "use fewer workers on this machine, or raise decode_timeout_s",
    FailureCode.DECODER_MEMORY: "raise decode_memory_mb where such images are wanted",
    FailureCode.STAGE_ERROR: "the stage raised: read the detail, mend the stage and raise its version",
    FailureCode.MODEL_ERROR: "read the detail: the model or its input is broken",
    FailureCode.BAD_ANSWER: "read the details: the model does not follow the prompt (another model, or `guided: true` for scores)",
    FailureCode.REFUSAL: "read the details: the model or its server refuses; another model or prompt may not",
    FailureCode.TRUNCATED: "raise the stage's max_tokens",
    FailureCode.WORKER_DIED: "the rows kill the worker process: check its memory limit, then look at the rows",
    FailureCode.HUNG: "the stage's call took longer than it allows: look at the rows",
}


def advice_for(code: str) -> str:
    """What to do about a failure code, as one clause without a full stop; of a plug-in's own code that its details tell."""
    return _ADVICE.get(code, "read the details (`pairmill failures OUT`) and mend the cause")
