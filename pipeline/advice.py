"""What to do about each failure code: one clause, for messages and for `pairmill failures`."""

from __future__ import annotations

from schemas.outcome import FailureCode

_ADVICE: dict[str, str] = {
    FailureCode.BAD_ROW: "check the input's columns (input.url, input.text)",
    FailureCode.FORGOTTEN: "nothing: it was removed for good",
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
    FailureCode.BLOCKED_ADDRESS: "look whether the resolver answers with private addresses; for servers of your own there is allow_private",
    FailureCode.NOT_AN_IMAGE: "look at one page: a login page or a proxy may answer in place of the servers",
    FailureCode.STAGE_ERROR: "the stage raised: read the detail, mend the stage and raise its version",
    FailureCode.MODEL_ERROR: "read the detail: the model or its input is broken",
    FailureCode.BAD_ANSWER: "read the details: the model does not follow the prompt (another model, or `guided: true` for scores)",
    FailureCode.REFUSAL: "read the details: the model or its server refuses; another model or prompt may not",
    FailureCode.TRUNCATED: "raise the stage's max_tokens",
    FailureCode.WORKER_DIED: "the rows kill the worker process: check its memory limit, then look at the rows",
    FailureCode.HUNG: "the stage's call took longer than it allows: look at the rows",
}


def advice_for(code: str) -> str:
    """What to do about a failure code, as one clause without a full stop; of any code there is something to say."""
    return _ADVICE.get(code, "read the details (`pairmill failures OUT`) and mend the cause")
