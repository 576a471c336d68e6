"""Releases on a hub that speaks as huggingface.co does, by address: hf://ORG/NAME or hf://ORG/NAME@REVISION.

`huggingface_hub` finds the commit of the revision, with the endpoint and token that are set for it (HF_ENDPOINT;
`hf auth login` or HF_TOKEN). The files of that commit are then fetched and checked as from any other file server.
"""

import re

from huggingface_hub import constants, get_hf_file_metadata, get_token, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from sscxr.release.config_file import one_line
from sscxr.release.download import FetchError, Server
from sscxr.release.signing import SUMS

SCHEME = "hf://"
_ADDRESS = re.compile(r"hf://(?P<repo>[^/@?#]+/[^/@?#]+)(@(?P<revision>[A-Za-z0-9][A-Za-z0-9._/-]{0,99}))?/?")
_COMMIT = re.compile("[0-9a-f]{40}")
_LOG_IN = "log in by `hf auth login`, or set HF_TOKEN"


def server(address: str) -> Server:
    """Return the files of a repository at one commit, after one request for the commit.

    Args:
        address: of a model repository that has a release's files at its top; without a revision, `main`.

    Raises:
        FetchError: not such an address, or the hub does not have it, or not for this account.
    """
    match = _ADDRESS.fullmatch(address)
    if not match:
        raise FetchError(f"{address!r}: give hf://ORG/NAME, or hf://ORG/NAME@REVISION")
    repo = match["repo"]
    commit = _commit(address, repo, match["revision"])
    token = None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()
    return Server(
        hf_hub_url(repo, "", revision=commit),
        name=f"{SCHEME}{repo}@{commit[:12]}",
        headers={"Authorization": f"Bearer {token}"} if token else {},
    )


def _commit(address: str, repo: str, revision: str | None) -> str:
    """Return the commit of a revision, by the headers of its SHA256SUMS."""
    try:
        commit = get_hf_file_metadata(hf_hub_url(repo, SUMS, revision=revision)).commit_hash
    except HFValidationError as error:
        reason = f"not the name of a repository: {one_line(error)[:200]}"
    except OfflineModeIsEnabled:
        reason = "HF_HUB_OFFLINE is set; unset it to fetch this"
    except GatedRepoError:
        reason = f"its owner grants access on the hub's page; then {_LOG_IN}"
    except RepositoryNotFoundError:
        reason = f"the hub {constants.ENDPOINT} has no such repository, or not for this account; {_LOG_IN}"
    except RevisionNotFoundError:
        reason = "the repository has no such revision"
    except EntryNotFoundError:
        reason = f"not a release: it has no {SUMS}"
    except Exception as error:  # of several libraries, without a class in common
        reason = (
            f"the hub {constants.ENDPOINT} does not answer: {one_line(error)[:200] or type(error).__name__}"
        )
    else:
        if commit and _COMMIT.fullmatch(commit):
            return commit
        reason = f"{constants.ENDPOINT} does not answer as a hub does (no commit); check HF_ENDPOINT"
    raise FetchError(f"{address}: {reason}")
