"""How much an operation asks for, known before it runs: its shape, and what it costs.

The cost is how many values the answer may hold. `first` and `limit` say how long a page is, and so
how often what is in it counts; a list that nothing bounds counts ASSUMED_LENGTH times. What is
asked twice counts twice, what `@skip` may leave out counts too, and introspection like the rest.
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

from graph.api.root_fields import iterate_root_fields
from graph.core.settings import MAX_COUNTED_COST
from graph.execution.cost_formula import Cost, Given, Size, Sums, clamped
from graph.execution.query_limits import Complexity

ASSUMED_LENGTH = 10
"""Of profiles, of GPUs, of the fields of a type."""

_PAGE_ARGUMENTS = ("first", "limit")


def measure_complexity(
    schema: GraphQLSchema, document: DocumentNode, operation: OperationDefinitionNode
) -> Complexity:
    """Of an operation of a valid document, in time that grows with the document's length alone."""
    counting = _Counting(schema, document, operation)
    root = cast("GraphQLCompositeType", schema.get_root_type(operation.operation))
    asked = counting.selected(root, operation.selection_set)
    resolved = {
        (field.alias or field.name).value: field.name.value
        for field in iterate_root_fields(document, operation)
    }
    own = [operation.directives, *(v.directives for v in operation.variable_definitions or ())]
    return Complexity(
        depth=asked.depth,
        aliases=asked.aliases,
        directives=asked.directives + sum(len(directives or ()) for directives in own),
        root_fields=tuple(resolved.values()),
        cost=counting.sums.formula(counting.holding(asked, ASSUMED_LENGTH)),
    )


class _Part(NamedTuple):
    """A selection. An object with a page in it costs `once`, and `each` for every row of it."""

    depth: int = 0
    aliases: int = 0
    directives: int = 0
    once: Cost = 0
    each: Cost = 0


class _Counting:
    """Counts each fragment once, however often it is spread."""

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

    def selected(self, parent: GraphQLCompositeType, selection_set: SelectionSetNode) -> _Part:
        parts = [self._part(parent, selection) for selection in selection_set.selections]
        return _Part(
            depth=max((part.depth for part in parts), default=0),
            aliases=min(sum(part.aliases for part in parts), MAX_COUNTED_COST),
            directives=min(sum(part.directives for part in parts), MAX_COUNTED_COST),
            once=self.sums.total(*((1, part.once) for part in parts)),
            each=self.sums.total(*((1, part.each) for part in parts)),
        )

    def holding(self, part: _Part, size: Size) -> Cost:
        """Of an object whose page is so long."""
        return self.sums.total((1, part.once), (size, part.each))

    def _part(self, parent: GraphQLCompositeType, selection: SelectionNode) -> _Part:
        match selection:
            case FieldNode():
                part = self._field(parent, selection)
            case FragmentSpreadNode():
                part = self._fragment(selection.name.value)
            case InlineFragmentNode(type_condition=condition):
                kind = parent if condition is None else self._type(condition)
                part = self.selected(kind, selection.selection_set)
        return part._replace(directives=part.directives + len(selection.directives or ()))

    def _fragment(self, name: str) -> _Part:
        if name not in self._spread:
            fragment = self._fragments[name]
            part = self.selected(self._type(fragment.type_condition), fragment.selection_set)
            own = len(fragment.directives or ())
            self._spread[name] = part._replace(directives=part.directives + own)
        return self._spread[name]

    def _field(self, parent: GraphQLCompositeType, node: FieldNode) -> _Part:
        field = self._schema.get_field(parent, node.name.value)
        assert field is not None  # noqa: S101  # the document is valid
        below = _Part()
        if node.selection_set is not None:
            kind = cast("GraphQLCompositeType", get_named_type(field.type))
            below = self.selected(kind, node.selection_set)
        part = _Part(below.depth + 1, below.aliases + (node.alias is not None), below.directives)
        size = self._size(field, node)
        if not is_list_type(get_nullable_type(field.type)):
            held = self.holding(below, ASSUMED_LENGTH if size is None else size)
            return part._replace(once=self.sums.total((1, 1), (1, held)))
        row = self.holding(below, ASSUMED_LENGTH)
        if size is None:  # the page of the object that it is in
            return part._replace(once=1, each=row)
        return part._replace(once=self.sums.total((1, 1), (size, row)))

    def _size(self, field: GraphQLField, node: FieldNode) -> Size | None:
        for name in _PAGE_ARGUMENTS:
            if name in field.args:
                default = clamped(coerce_default_value(field.args[name]))
                given = (each.value for each in node.arguments or () if each.name.value == name)
                return self._given(next(given, None), default)
        return None

    def _given(self, value: ValueNode | None, default: int) -> Size:
        if isinstance(value, VariableNode):
            name = value.name.value
            return Given(name, _number(self._defaults.get(name)), default)
        number = _number(value)
        return default if number is None else number

    def _type(self, node: NamedTypeNode) -> GraphQLCompositeType:
        return cast("GraphQLCompositeType", self._schema.get_type(node.name.value))


def _number(value: ValueNode | None) -> int | None:
    return clamped(int(value.value)) if isinstance(value, IntValueNode) else None
