"""Plans: what executing an operation works out anew each time, worked out once.

A query or mutation has one if it is a single field that takes input objects out of variables and
gives plain attributes, as the recording of heartbeats is; a subscription has the shape of its
events, if those are plain attributes. All else is the executor's. So is a request whose variables
are not of their types: the executor says what is wrong with them.
"""

from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from graphql import (
    ExecutionResult,
    FieldNode,
    GraphQLArgument,
    GraphQLInputObjectType,
    GraphQLNonNull,
    GraphQLObjectType,
    GraphQLResolveInfo,
    GraphQLSchema,
    OperationDefinitionNode,
    VariableNode,
    VariableValues,
    get_named_type,
    located_error,
    print_ast,
)
from graphql.pyutils import Path, is_awaitable
from strawberry.types.field import StrawberryField

from graph.api.context import Context, Info
from graph.execution.compiled_input import Coercion, compile_coercion
from graph.execution.compiled_output import (
    OURS,
    NotCompilable,
    Shape,
    collect_fields,
    compile_shape,
)


@dataclass(frozen=True, slots=True)
class CompiledOperation:
    """Gives the answers that the executor gives. Only of a value that the schema does not allow, a
    fault of ours, it does not tell where it is.
    """

    _key: str
    _node: FieldNode
    _field: StrawberryField
    _resolve: Callable[..., Awaitable[Any]]
    _arguments: tuple[tuple[str, str, Coercion], ...]
    _info: GraphQLResolveInfo[Any]
    _shape: Shape

    def coerce(self, variables: Mapping[str, Any] | None) -> dict[str, Any] | None:
        """None if the variables are not of their types."""
        try:
            given = variables or {}
            return {name: coerce(given[variable]) for name, variable, coerce in self._arguments}
        except Exception:  # noqa: BLE001  # the executor will say which
            return None

    async def run(self, arguments: Mapping[str, Any], context: Context) -> ExecutionResult:
        info = Info(_raw_info=self._info._replace(context=context), _field=self._field)
        try:
            result = await self._resolve(None, info=info, **arguments)
            return ExecutionResult({self._key: self._shape(result)})
        except Exception as error:  # noqa: BLE001  # whatever it is, it answers this operation
            return ExecutionResult(None, [located_error(error, [self._node], [self._key])])


def compile_operation(
    schema: GraphQLSchema, operation: OperationDefinitionNode
) -> CompiledOperation | None:
    """Of a valid operation; None if it takes the executor."""
    try:
        return _plan(schema, operation)
    except NotCompilable:
        return None


def compile_event_shape(schema: GraphQLSchema, operation: OperationDefinitionNode) -> Shape | None:
    """What a valid subscription shows of an event; None if it takes the executor. So does an event
    for which it raises: the executor tells why.
    """
    try:
        root, key, node = _only_field(schema, operation)
        shape = compile_shape(schema, root.fields[node.name.value].type, node.selection_set)
    except NotCompilable:
        return None
    return lambda event: {key: shape(event)}


def _plan(schema: GraphQLSchema, operation: OperationDefinitionNode) -> CompiledOperation:
    root, key, node = _only_field(schema, operation)
    field = root.fields.get(node.name.value)
    if field is None:
        raise NotCompilable  # introspection
    ours: StrawberryField = field.extensions[OURS]
    # The error of a field that may be null would leave a response with data.
    _expect(ours.is_async and not ours.extensions and isinstance(field.type, GraphQLNonNull))
    resolver = ours.base_resolver
    if resolver is None or resolver.self_parameter is None or resolver.info_parameter is None:
        raise NotCompilable
    info = GraphQLResolveInfo(
        field_name=node.name.value,
        field_nodes=[node],
        return_type=field.type,
        parent_type=root,
        path=Path(None, key, root.name),
        schema=schema,
        fragments={},
        root_value=None,
        operation=operation,
        variable_values=VariableValues({}, {}),
        context=None,
        is_awaitable=is_awaitable,
        abort_signal=None,
        async_helpers=None,  # type: ignore[arg-type]  # the executor's own
    )
    return CompiledOperation(
        key,
        node,
        ours,
        resolver,
        tuple(_arguments(operation, node, field.args)),
        info,
        compile_shape(schema, field.type, node.selection_set),
    )


def _only_field(
    schema: GraphQLSchema, operation: OperationDefinitionNode
) -> tuple[GraphQLObjectType, str, FieldNode]:
    """The root, and its field with the name in the response. Raises Unforeseen."""
    root = schema.get_root_type(operation.operation)
    assert root is not None  # noqa: S101  # a valid operation has one
    selected = collect_fields(schema, root, operation.selection_set)
    _expect(len(selected) == 1 and not operation.directives)
    [(key, node)] = selected.items()
    return root, key, node


def _arguments(
    operation: OperationDefinitionNode, node: FieldNode, defined: Mapping[str, GraphQLArgument]
) -> Iterator[tuple[str, str, Coercion]]:
    """The name in Python, and the variable, which is of the very type. Raises Unforeseen."""
    declared = {one.variable.name.value: one for one in operation.variable_definitions or ()}
    given = {one.name.value: one.value for one in node.arguments or ()}
    _expect(given.keys() == defined.keys() and len(given) == len(declared))
    for name, value in given.items():
        argument = defined[name]
        if not isinstance(value, VariableNode):
            raise NotCompilable
        variable = declared[value.name.value]
        _expect(print_ast(variable.type) == str(argument.type))
        _expect(variable.default_value is None and not variable.directives)
        _expect(isinstance(argument.type, GraphQLNonNull))  # others may be left out
        # Strawberry has these made as they are checked; it would convert others by itself.
        _expect(isinstance(get_named_type(argument.type), GraphQLInputObjectType))
        yield (
            argument.extensions[OURS].python_name,
            value.name.value,
            compile_coercion(argument.type),
        )


def _expect(condition: bool) -> None:  # noqa: FBT001  # an assertion
    if not condition:
        raise NotCompilable
