// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package config

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

// maxFile bounds a configuration file.
const maxFile = 1 << 20

// readFile reads the file at path into c.
func (c *Config) readFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("read the configuration: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return fmt.Errorf("read the configuration: %w", err)
	}
	if len(text) > maxFile {
		return &Problem{Where: path, What: fmt.Sprintf("longer than %d bytes", maxFile)}
	}
	return c.readYAML(path, text)
}

// readYAML reads text, which came from the file called name. The library gives the nodes and their lines; what may be
// where is decided here, so that nothing is converted that was not meant.
func (c *Config) readYAML(name string, text []byte) error {
	file, err := parser.ParseBytes(text, 0, parser.AllowDuplicateMapKey()) // duplicates are found below, with both lines
	if err != nil {
		return syntaxProblem(name, err)
	}
	r := reader{name: name, config: c, known: make(map[string]setting), seen: make(map[string]int)}
	for _, s := range c.settings() {
		r.known[s.key] = s
	}
	bodies := 0
	for _, doc := range file.Docs {
		if doc.Body == nil || doc.Body.Type() == ast.NullType || doc.Body.Type() == ast.CommentType {
			continue
		}
		if bodies++; bodies > 1 {
			r.fail(doc.Body, "a second document", "keep one, without a line of three dashes in between")
			break
		}
		r.mapping("", doc.Body)
	}
	return errors.Join(r.errs...)
}

func syntaxProblem(name string, err error) error {
	e, ok := errors.AsType[*yaml.SyntaxError](err)
	if !ok || e.GetToken() == nil || e.GetToken().Position == nil {
		return &Problem{Where: name, What: "no YAML: " + strings.SplitN(err.Error(), "\n", 2)[0]}
	}
	return &Problem{Where: fmt.Sprintf("%s:%d", name, e.GetToken().Position.Line), What: "no YAML: " + e.GetMessage()}
}

// reader walks the nodes of one file.
type reader struct {
	name   string
	config *Config
	known  map[string]setting
	seen   map[string]int // key -> line
	errs   []error
}

func (r *reader) at(n ast.Node) string {
	return fmt.Sprintf("%s:%d", r.name, line(n))
}

func line(n ast.Node) int {
	if t := n.GetToken(); t != nil && t.Position != nil {
		return t.Position.Line
	}
	return 1
}

func (r *reader) fail(n ast.Node, what, hint string) {
	r.errs = append(r.errs, &Problem{Where: r.at(n), What: what, Hint: hint})
}

// mapping reads the keys of a section, or of the file when section is empty.
func (r *reader) mapping(section string, n ast.Node) {
	m, ok := n.(ast.MapNode)
	if !ok {
		r.fail(n, describe(section)+" must hold keys with values, not "+kind(n), r.keysOf(section))
		return
	}
	for it := m.MapRange(); it.Next(); {
		key, ok := it.Key().(*ast.StringNode)
		if !ok {
			r.fail(it.Key(), "a key must be a plain word", r.keysOf(section))
			continue
		}
		r.entry(section, key, it.Value())
	}
}

func (r *reader) entry(section string, key *ast.StringNode, value ast.Node) {
	full := strings.TrimPrefix(section+"."+key.Value, ".")
	s, isSetting := r.known[full]
	isSetting = isSetting && strings.Contains(full, ".") == (section != "")
	isSection := section == "" && r.isSection(key.Value)
	if !isSetting && !isSection {
		r.fail(key, fmt.Sprintf("unknown key %q", full), r.keysOf(section))
		return
	}
	if first, again := r.seen[full]; again {
		r.fail(key, fmt.Sprintf("the key %q is already in line %d", full, first), "keep one of them")
		return
	}
	r.seen[full] = line(key)
	if isSection {
		r.mapping(key.Value, value)
		return
	}
	if trusts, ok := s.value.(*[]Trust); ok {
		r.config.given[full] = r.at(key)
		*trusts = r.trusts(key, value)
		return
	}
	if what, hint := set(s, value); what != "" {
		r.fail(key, fmt.Sprintf("%s: %s", full, what), hint)
		return
	}
	r.config.given[full] = r.at(key)
}

// set gives a setting the value of a node, or says what is wrong with it.
func set(s setting, n ast.Node) (what, hint string) {
	switch v := s.value.(type) {
	case *string:
		text, ok := text(n)
		if !ok {
			return "must be a string, not " + kind(n), asString(n)
		}
		*v = text
	case *int:
		number, ok := n.(*ast.IntegerNode)
		if !ok {
			return "must be a whole number", "write it like 1"
		}
		i, err := strconv.Atoi(number.String())
		if err != nil {
			return "must be a whole number that is not so great", "write it like 1"
		}
		*v = i
	case *bool:
		b, ok := n.(*ast.BoolNode)
		if !ok {
			return "must be true or false", "write it without quotes"
		}
		*v = b.Value
	case *time.Duration:
		text, ok := text(n)
		if !ok {
			return "must be a duration, not " + kind(n), "write it like 10m, 1h30m or 7d"
		}
		d, err := parseDuration(text)
		if err != nil {
			return err.Error(), ""
		}
		*v = d
	case *[]string:
		return setList(v, n)
	}
	return "", ""
}

// trusts reads the list of foreign authorities.
func (r *reader) trusts(key, n ast.Node) []Trust {
	sequence, ok := n.(*ast.SequenceNode)
	if !ok {
		r.fail(key, "trust: must be a list, not "+kind(n), "begin each authority with a dash, or write [] for none")
		return nil
	}
	var out []Trust
	for _, item := range sequence.Values {
		out = append(out, r.trust(item))
	}
	return out
}

// trust reads one of them.
func (r *reader) trust(n ast.Node) Trust {
	const keys = "the keys here are name, ca_file, crl_file, crl_url, revocation"
	var t Trust
	m, ok := n.(ast.MapNode)
	if !ok {
		r.fail(n, "an authority must hold keys with values, not "+kind(n), keys)
		return t
	}
	known := make(map[string]setting)
	for _, s := range t.members() {
		known[s.key] = s
	}
	seen := make(map[string]bool)
	for it := m.MapRange(); it.Next(); {
		key, ok := it.Key().(*ast.StringNode)
		if !ok {
			r.fail(it.Key(), "a key must be a plain word", keys)
			continue
		}
		s, ok := known[key.Value]
		if !ok {
			r.fail(key, fmt.Sprintf("unknown key %q in trust", key.Value), keys)
			continue
		}
		if seen[s.key] {
			r.fail(key, fmt.Sprintf("the key %q is given twice for one authority", s.key), "keep one of them")
			continue
		}
		seen[s.key] = true
		if what, hint := set(s, it.Value()); what != "" {
			r.fail(key, fmt.Sprintf("trust: %s: %s", s.key, what), hint)
		}
	}
	return t
}

func setList(dst *[]string, n ast.Node) (what, hint string) {
	sequence, ok := n.(*ast.SequenceNode)
	if !ok {
		return "must be a list, not " + kind(n), "write it like [a.example, b.example]"
	}
	var out []string
	for _, item := range sequence.Values {
		text, ok := text(item)
		if !ok {
			return fmt.Sprintf("line %d must be a string, not %s", line(item), kind(item)), asString(item)
		}
		out = append(out, text)
	}
	*dst = out
	return "", ""
}

// asString says what makes a string of a node that is none.
func asString(n ast.Node) string {
	switch n.Type() {
	case ast.NullType:
		return "write a value, or leave the key out"
	case ast.IntegerType, ast.FloatType, ast.InfinityType, ast.NanType, ast.BoolType:
		return "put it in double quotes"
	}
	return "write the one value, as text in double quotes"
}

// text returns the text of a string, whether plain, quoted or a block.
func text(n ast.Node) (string, bool) {
	switch n := n.(type) {
	case *ast.StringNode:
		return n.Value, true
	case *ast.LiteralNode:
		return n.Value.Value, true
	}
	return "", false
}

// kind names what a node is, for people.
func kind(n ast.Node) string {
	switch n.Type() {
	case ast.NullType:
		return "nothing"
	case ast.IntegerType, ast.FloatType, ast.InfinityType, ast.NanType:
		return "a number"
	case ast.BoolType:
		return "true or false"
	case ast.StringType, ast.LiteralType:
		return "a string"
	case ast.SequenceType:
		return "a list"
	case ast.MappingType, ast.MappingValueType:
		return "keys with values"
	case ast.AnchorType, ast.AliasType, ast.MergeKeyType:
		return "an anchor or an alias"
	case ast.TagType:
		return "a tag"
	}
	return "something else"
}

func describe(section string) string {
	if section == "" {
		return "the file"
	}
	return section
}

func (r *reader) isSection(name string) bool {
	for key := range r.known {
		if strings.HasPrefix(key, name+".") {
			return true
		}
	}
	return false
}

// keysOf tells which keys a section has.
func (r *reader) keysOf(section string) string {
	var names []string
	for _, s := range r.config.settings() {
		prefix, name, nested := strings.Cut(s.key, ".")
		switch {
		case section == "" && !nested:
			names = append(names, s.key)
		case section == "" && (len(names) == 0 || names[len(names)-1] != prefix):
			names = append(names, prefix)
		case section != "" && nested && prefix == section:
			names = append(names, name)
		}
	}
	return "the keys here are " + strings.Join(names, ", ")
}
