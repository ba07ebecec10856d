const url = new URL("/graphql", location.href);
const subscriptionUrl = new URL(url);
subscriptionUrl.protocol = url.protocol === "https:" ? "wss:" : "ws:";
const fetcher = GraphiQL.createFetcher({ url: url.href, subscriptionUrl: subscriptionUrl.href });
const defaultQuery = `# The nodes of the network.
query Nodes {
  nodes {
    nodes { nodeId name role type status statusReason statusSince lastHeartbeat }
    totalCount
  }
}

# The status changes of the nodes, live.
subscription Changes {
  nodeStatusChanges {
    ... on NodeStatusChanged { change { revision nodeId previousStatus status reason changedAt } }
    ... on Bookmark { revision }
  }
}
`;
ReactDOM.createRoot(document.getElementById("graphiql")).render(
  React.createElement(GraphiQL, { fetcher, defaultQuery, defaultEditorToolsVisibility: true }),
);
