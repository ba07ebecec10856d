"""The agent's documents as the registry keeps them: by their ids.

`python -m agent.trusted_documents` prints them as JSON, for graph/execution/trusted_documents.json.
"""

import hashlib
import json

from gql import GraphQLRequest

from agent import documents


def get_text(document: GraphQLRequest) -> str:
    """Return the text from which the document was parsed."""
    location = document.document.loc
    assert location is not None  # noqa: S101  # whatever was parsed has one
    return location.source.body


def compute_id(document: GraphQLRequest) -> str:
    """Return the `documentId`: https://github.com/graphql/graphql-over-http, appendix A."""
    return f"sha256:{hashlib.sha256(get_text(document).encode()).hexdigest()}"


def collect_documents() -> dict[str, str]:
    """Return the text of each document in `agent.documents` by its id."""
    found = [value for value in vars(documents).values() if isinstance(value, GraphQLRequest)]
    return {compute_id(document): get_text(document) for document in found}


if __name__ == "__main__":
    print(json.dumps(collect_documents(), indent=2))  # noqa: T201  # for a file
