"""The size of an operation, measured before it runs: depth, aliases, directives and cost.

The cost is the number of values that the response may hold. `first` and `limit` give the length of
a page and multiply what is selected in it; a list without them counts ASSUMED_LENGTH times. A
field selected twice counts twice, a field that `@skip` may leave out counts, and so does
introspection.
"""

from typing import NamedTuple, cast

from graphql import (
    DocumentNode,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    GraphQLCompositeType,
    GraphQLField,
    GraphQLSchema,
    InlineFragmentNode,
    IntValueNode,
    NamedTypeNode,
    OperationDefinitionNode,
    SelectionNode,
    SelectionSetNode,
    ValueNode,
    VariableNode,
    get_named_type,
    get_nullable_type,
    is_list_type,
)
from graphql.utilities.coerce_input_value import coerce_default_value

from graph.api.field_declarations import iterate_root_fields
from graph.core.settings import MAX_COUNTED_COST
from graph.execution.cost_formula import Cost, Size, Sums, VariableSize, clamp_size
from graph.execution.query_limits import Complexity

ASSUMED_LENGTH = 10
"""Items in a list without a page size: profiles, GPUs, fields of a type."""

_PAGE_ARGUMENTS = ("first", "limit")


def measure_complexity(
    schema: GraphQLSchema, document: DocumentNode, operation: OperationDefinitionNode
) -> Complexity:
    """Measure an operation of a valid document, in time linear in the document's length."""
    measurement = _Measurement(schema, document, operation)
    root = cast("GraphQLCompositeType", schema.get_root_type(operation.operation))
    whole = measurement.measure_selections(root, operation.selection_set)
    resolved = {
        (field.alias or field.name).value: field.name.value
        for field in iterate_root_fields(document, operation)
    }
    own_directives = [
        operation.directives,
        *(v.directives for v in operation.variable_definitions or ()),
    ]
    return Complexity(
        depth=whole.depth,
        aliases=whole.aliases,
        directives=whole.directives + sum(len(directives or ()) for directives in own_directives),
        root_fields=tuple(resolved.values()),
        cost=measurement.sums.to_formula(measurement.multiply(whole, ASSUMED_LENGTH)),
    )


class _Part(NamedTuple):
    """A selection: it costs `once`, and `each` for every row of the page that it is in."""

    depth: int = 0
    aliases: int = 0
    directives: int = 0
    once: Cost = 0
    each: Cost = 0


class _Measurement:
    """Measures the selections of one operation, each fragment only once."""

    def __init__(
        self, schema: GraphQLSchema, document: DocumentNode, operation: OperationDefinitionNode
    ) -> None:
        self._schema = schema
        self._fragments = {
            definition.name.value: definition
            for definition in document.definitions
            if isinstance(definition, FragmentDefinitionNode)
        }
        self._defaults = {
            definition.variable.name.value: definition.default_value
            for definition in operation.variable_definitions or ()
        }
        self._spread: dict[str, _Part] = {}
        self.sums = Sums()

    def measure_selections(
        self, parent: GraphQLCompositeType, selection_set: SelectionSetNode
    ) -> _Part:
        parts = [
            self._measure_selection(parent, selection) for selection in selection_set.selections
        ]
        return _Part(
            depth=max((part.depth for part in parts), default=0),
            aliases=min(sum(part.aliases for part in parts), MAX_COUNTED_COST),
            directives=min(sum(part.directives for part in parts), MAX_COUNTED_COST),
            once=self.sums.add(*((1, part.once) for part in parts)),
            each=self.sums.add(*((1, part.each) for part in parts)),
        )

    def multiply(self, part: _Part, size: Size) -> Cost:
        """Return the cost of an object whose page has this many rows."""
        return self.sums.add((1, part.once), (size, part.each))

    def _measure_selection(self, parent: GraphQLCompositeType, selection: SelectionNode) -> _Part:
        match selection:
            case FieldNode():
                part = self._measure_field(parent, selection)
            case FragmentSpreadNode():
                part = self._measure_fragment(selection.name.value)
            case InlineFragmentNode(type_condition=condition):
                kind = parent if condition is None else self._get_type(condition)
                part = self.measure_selections(kind, selection.selection_set)
        return part._replace(directives=part.directives + len(selection.directives or ()))

    def _measure_fragment(self, name: str) -> _Part:
        if name not in self._spread:
            fragment = self._fragments[name]
            part = self.measure_selections(
                self._get_type(fragment.type_condition), fragment.selection_set
            )
            own_directives = len(fragment.directives or ())
            self._spread[name] = part._replace(directives=part.directives + own_directives)
        return self._spread[name]

    def _measure_field(self, parent: GraphQLCompositeType, node: FieldNode) -> _Part:
        field = self._schema.get_field(parent, node.name.value)
        assert field is not None  # noqa: S101  # the document is valid
        inner = _Part()
        if node.selection_set is not None:
            kind = cast("GraphQLCompositeType", get_named_type(field.type))
            inner = self.measure_selections(kind, node.selection_set)
        part = _Part(inner.depth + 1, inner.aliases + (node.alias is not None), inner.directives)
        size = self._find_size(field, node)
        if not is_list_type(get_nullable_type(field.type)):
            held = self.multiply(inner, ASSUMED_LENGTH if size is None else size)
            return part._replace(once=self.sums.add((1, 1), (1, held)))
        row = self.multiply(inner, ASSUMED_LENGTH)
        if size is None:  # its length is that of the page that the enclosing object is in
            return part._replace(once=1, each=row)
        return part._replace(once=self.sums.add((1, 1), (size, row)))

    def _find_size(self, field: GraphQLField, node: FieldNode) -> Size | None:
        for name in _PAGE_ARGUMENTS:
            if name in field.args:
                default = clamp_size(coerce_default_value(field.args[name]))
                values = (each.value for each in node.arguments or () if each.name.value == name)
                return self._read_size(next(values, None), default)
        return None

    def _read_size(self, value: ValueNode | None, default: int) -> Size:
        if isinstance(value, VariableNode):
            name = value.name.value
            return VariableSize(name, _read_number(self._defaults.get(name)), default)
        number = _read_number(value)
        return default if number is None else number

    def _get_type(self, node: NamedTypeNode) -> GraphQLCompositeType:
        return cast("GraphQLCompositeType", self._schema.get_type(node.name.value))


def _read_number(value: ValueNode | None) -> int | None:
    return clamp_size(int(value.value)) if isinstance(value, IntValueNode) else None
