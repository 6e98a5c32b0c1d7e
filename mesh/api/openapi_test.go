package api_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"strings"
	"testing"

	"guywire/mesh/api"
)

var rewrite = flag.Bool("rewrite", false, "rewrite the files in testdata")

// The document is kept in testdata, so that a change of the API shows in review.
func TestOpenAPI(t *testing.T) {
	got, err := json.MarshalIndent(api.OpenAPI(), "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	got = append(got, '\n')
	const file = "testdata/openapi.json"
	if *rewrite {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("the API changed; look at the difference after: go test ./mesh/api -run OpenAPI -rewrite")
	}
}

// Every reference leads somewhere and every field has a name.
func TestOpenAPIIsWhole(t *testing.T) {
	b, err := json.Marshal(api.OpenAPI())
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		Components struct {
			Schemas map[string]struct {
				Properties map[string]any `json:"properties"`
			} `json:"schemas"`
		} `json:"components"`
	}
	if err := json.Unmarshal(b, &doc); err != nil {
		t.Fatal(err)
	}
	for _, part := range strings.Split(string(b), "#/components/schemas/")[1:] {
		name, _, _ := strings.Cut(part, `"`)
		if _, ok := doc.Components.Schemas[name]; !ok {
			t.Errorf("a reference leads to %q, which is not described", name)
		}
	}
	for name, s := range doc.Components.Schemas {
		for field := range s.Properties {
			if field == "" || field == "-" || strings.ToLower(field) != field {
				t.Errorf("%s has a field %q", name, field)
			}
		}
	}
}
