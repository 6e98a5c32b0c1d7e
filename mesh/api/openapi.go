package api

import (
	"encoding"
	"net/http"
	"reflect"
	"strings"
	"time"
)

// OpenAPI describes the API in the form of OpenAPI 3.1, made from the route
// table and the Go types.
func OpenAPI() map[string]any {
	d := describer{}
	paths := map[string]any{}
	for _, r := range routes() {
		ops, ok := paths[r.path].(map[string]any)
		if !ok {
			ops = map[string]any{}
			paths[r.path] = ops
		}
		ops[strings.ToLower(r.method)] = d.operation(r)
	}
	return map[string]any{
		"openapi": "3.1.0",
		"info": map[string]any{
			"title":   "meshd",
			"version": "1",
			"description": "The API of a Guywire node, on its unix socket, and by mutual TLS with the protocol guywire-api/1 on its control port. " +
				"On the socket, member and read: members of group " + GroupName + "; change: root and the daemon's user. " +
				"From elsewhere, member: every node; read and change: operators, as the log of the mesh says at the moment of the call. " +
				"On the socket the header " + onHeader + ": NODE has the daemon pass a call on to another node. Streams are one JSON record per line; a stream that fails ends with a record {\"error\": Error}.",
		},
		"paths":      paths,
		"components": map[string]any{"schemas": map[string]any(d)},
	}
}

// A describer collects the schemas of named types.
type describer map[string]any

func (d describer) operation(r route) map[string]any {
	media := "application/json"
	if r.stream {
		media = "application/x-ndjson"
	}
	right := "Right: " + r.right.String()
	if r.local {
		right += ", on the machine itself only"
	}
	op := map[string]any{
		"summary":     r.summary,
		"description": right,
		"responses": map[string]any{
			"200":     map[string]any{"description": "ok", "content": content(media, d.schema(r.reply))},
			"default": map[string]any{"description": "error", "content": content("application/json", d.schema(reflect.TypeFor[Error]()))},
		},
	}
	switch {
	case r.request.NumField() == 0:
	case r.method == http.MethodPost:
		op["requestBody"] = map[string]any{"content": content("application/json", d.schema(r.request))}
	default:
		op["parameters"] = d.parameters(r)
	}
	return op
}

func content(media string, schema any) map[string]any {
	return map[string]any{media: map[string]any{"schema": schema}}
}

func (d describer) parameters(r route) []any {
	var params []any
	for f := range r.request.Fields() {
		name := f.Tag.Get("json")
		p := map[string]any{"name": name, "in": "query", "schema": d.schema(f.Type)}
		if strings.Contains(r.path, "{"+name+"}") {
			p["in"], p["required"] = "path", true
		}
		params = append(params, p)
	}
	return params
}

var textMarshaler = reflect.TypeFor[encoding.TextMarshaler]()

// schema gives the JSON Schema of a type as encoding/json writes it; structs
// become references.
func (d describer) schema(t reflect.Type) map[string]any {
	switch {
	case t == reflect.TypeFor[Schema]():
		return map[string]any{"const": SchemaNumber}
	case t == reflect.TypeFor[time.Time]():
		return map[string]any{"type": "string", "format": "date-time"}
	case t.Kind() == reflect.Pointer:
		return map[string]any{"anyOf": []any{d.schema(t.Elem()), map[string]any{"type": "null"}}}
	case t.Implements(textMarshaler):
		return map[string]any{"type": "string"}
	}
	switch t.Kind() {
	case reflect.Bool:
		return map[string]any{"type": "boolean"}
	case reflect.String:
		return map[string]any{"type": "string"}
	case reflect.Float64:
		return map[string]any{"type": "number"}
	case reflect.Int, reflect.Uint16, reflect.Uint64:
		return map[string]any{"type": "integer"}
	case reflect.Slice:
		return map[string]any{"type": "array", "items": d.schema(t.Elem())}
	case reflect.Map:
		return map[string]any{"type": "object"}
	case reflect.Struct:
		if _, known := d[t.Name()]; !known {
			d[t.Name()] = nil // a type that holds itself ends here
			d[t.Name()] = d.object(t)
		}
		return map[string]any{"$ref": "#/components/schemas/" + t.Name()}
	default:
		panic("no schema for " + t.String())
	}
}

func (d describer) object(t reflect.Type) map[string]any {
	properties := map[string]any{}
	required := []string{}
	for f := range t.Fields() {
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		p := d.schema(f.Type)
		if words := f.Tag.Get("enum"); words != "" {
			p["enum"] = strings.Split(words, ",")
		}
		properties[name] = p
		if options == "" && !strings.HasSuffix(t.Name(), "Request") {
			required = append(required, name)
		}
	}
	return map[string]any{"type": "object", "properties": properties, "required": required}
}
