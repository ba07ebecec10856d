"""Operations compiled once instead of being executed from their documents each time.

A query or mutation can be compiled if it is a single field that takes input objects from variables
and returns plain attributes, as recordHeartbeat does; a subscription, if its events are plain
attributes. The executor runs all other operations, and requests whose variables are not of their
types: it reports what is wrong with them.
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
    STRAWBERRY_DEFINITION,
    NotCompilable,
    Shape,
    collect_fields,
    compile_shape,
)


@dataclass(frozen=True, slots=True)
class CompiledOperation:
    """A query or mutation with the executor's results.

    The one difference: the error of a result that the schema does not allow, which is our fault,
    does not say where in the result it is.
    """

    _key: str
    _node: FieldNode
    _field: StrawberryField
    _resolve: Callable[..., Awaitable[Any]]
    _arguments: tuple[tuple[str, str, Coercion], ...]
    _info: GraphQLResolveInfo[Any]
    _shape: Shape

    def coerce(self, variables: Mapping[str, Any] | None) -> dict[str, Any] | None:
        """Return the resolver's arguments; None if the variables are not of their types."""
        try:
            values = variables or {}
            return {name: coerce(values[variable]) for name, variable, coerce in self._arguments}
        except Exception:  # noqa: BLE001  # the executor reports which
            return None

    async def run(self, arguments: Mapping[str, Any], context: Context) -> ExecutionResult:
        info = Info(_raw_info=self._info._replace(context=context), _field=self._field)
        try:
            result = await self._resolve(None, info=info, **arguments)
            return ExecutionResult({self._key: self._shape(result)})
        except Exception as error:  # noqa: BLE001  # any error is the response to this operation
            return ExecutionResult(None, [located_error(error, [self._node], [self._key])])


def compile_operation(
    schema: GraphQLSchema, operation: OperationDefinitionNode
) -> CompiledOperation | None:
    """Return the compiled form of a valid operation; None if only the executor can run it."""
    try:
        return _compile(schema, operation)
    except NotCompilable:
        return None


def compile_event_shape(schema: GraphQLSchema, operation: OperationDefinitionNode) -> Shape | None:
    """Return the shape of a valid subscription's events; None if only the executor can encode them.

    An event for which the shape raises is encoded by the executor, which reports why.
    """
    try:
        root, key, node = _get_only_field(schema, operation)
        shape = compile_shape(schema, root.fields[node.name.value].type, node.selection_set)
    except NotCompilable:
        return None
    return lambda event: {key: shape(event)}


def _compile(schema: GraphQLSchema, operation: OperationDefinitionNode) -> CompiledOperation:
    root, key, node = _get_only_field(schema, operation)
    field = root.fields.get(node.name.value)
    if field is None:
        raise NotCompilable  # introspection
    definition: StrawberryField = field.extensions[STRAWBERRY_DEFINITION]
    # The error of a nullable field would leave a response with data.
    _expect(
        definition.is_async and not definition.extensions and isinstance(field.type, GraphQLNonNull)
    )
    resolver = definition.base_resolver
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
        definition,
        resolver,
        tuple(_compile_arguments(operation, node, field.args)),
        info,
        compile_shape(schema, field.type, node.selection_set),
    )


def _get_only_field(
    schema: GraphQLSchema, operation: OperationDefinitionNode
) -> tuple[GraphQLObjectType, str, FieldNode]:
    """Return the root type, the response key and the node of the only field.

    Raises NotCompilable.
    """
    root = schema.get_root_type(operation.operation)
    assert root is not None  # noqa: S101  # a valid operation has one
    selected = collect_fields(schema, root, operation.selection_set)
    _expect(len(selected) == 1 and not operation.directives)
    [(key, node)] = selected.items()
    return root, key, node


def _compile_arguments(
    operation: OperationDefinitionNode, node: FieldNode, defined: Mapping[str, GraphQLArgument]
) -> Iterator[tuple[str, str, Coercion]]:
    """Yield Python name, variable and coercion of each argument: a variable of exactly its type.

    Raises NotCompilable.
    """
    definitions = {each.variable.name.value: each for each in operation.variable_definitions or ()}
    values = {each.name.value: each.value for each in node.arguments or ()}
    _expect(values.keys() == defined.keys() and len(values) == len(definitions))
    for name, value in values.items():
        argument = defined[name]
        if not isinstance(value, VariableNode):
            raise NotCompilable
        variable = definitions[value.name.value]
        _expect(print_ast(variable.type) == str(argument.type))
        _expect(variable.default_value is None and not variable.directives)
        _expect(isinstance(argument.type, GraphQLNonNull))  # a nullable argument may be absent
        # The schema builds input objects as it checks them; Strawberry converts other types.
        _expect(isinstance(get_named_type(argument.type), GraphQLInputObjectType))
        yield (
            argument.extensions[STRAWBERRY_DEFINITION].python_name,
            value.name.value,
            compile_coercion(argument.type),
        )


def _expect(condition: bool) -> None:  # noqa: FBT001  # an assertion
    if not condition:
        raise NotCompilable
