// Derives the schemas that kubeconform reads, and checks what has none. scripts/test-deploy runs it.
//
//	deploy schemas KUBERNETES OUT   KUBERNETES: the directory of the Go module k8s.io/kubernetes
//	deploy operator FILE            the resources of the Prometheus operator in a file
//	deploy compose FILE...          the later files override the first
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/compose-spec/compose-go/v2/cli"
	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

type object = map[string]any

func main() {
	var err error
	switch {
	case len(os.Args) == 4 && os.Args[1] == "schemas":
		err = schemas(os.Args[2], os.Args[3])
	case len(os.Args) == 3 && os.Args[1] == "operator":
		err = operator(os.Args[2])
	case len(os.Args) > 2 && os.Args[1] == "compose":
		err = compose(os.Args[2:])
	default:
		err = fmt.Errorf("usage: deploy schemas KUBERNETES OUT | deploy operator FILE | deploy compose FILE...")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// compose loads a project as Docker Compose does: schema, interpolation, merge, references between services.
func compose(files []string) error {
	options, err := cli.NewProjectOptions(files, cli.WithName("firstcome"),
		cli.WithEnv([]string{"POSTGRES_PASSWORD=0123456789", "ADMIN_TOKEN=0123456789012345"}))
	if err != nil {
		return err
	}
	project, err := options.LoadProject(context.Background())
	if err != nil {
		return err
	}
	fmt.Printf("%s: %s\n", strings.Join(files, " + "), strings.Join(project.ServiceNames(), ", "))
	return nil
}

// schemas writes a JSON schema for each kind, as KIND-GROUP-VERSION.json.
func schemas(kubernetes, out string) error {
	text, err := os.ReadFile(filepath.Join(kubernetes, "api/openapi-spec/swagger.json"))
	if err != nil {
		return err
	}
	var swagger struct {
		Definitions map[string]object `json:"definitions"`
	}
	if err := json.Unmarshal(text, &swagger); err != nil {
		return err
	}
	for name, definition := range swagger.Definitions {
		strict(definition)
		// Texts in JSON, and numbers in YAML.
		if name == "io.k8s.apimachinery.pkg.api.resource.Quantity" {
			definition["type"] = []any{"string", "number"}
		}
	}
	for name, definition := range swagger.Definitions {
		kinds, _ := definition["x-kubernetes-group-version-kind"].([]any)
		// Options of deletion and events of a watch belong to every group.
		if len(kinds) != 1 {
			continue
		}
		kind := kinds[0].(object)
		group, version := kind["group"].(string), kind["version"].(string)
		properties, ok := definition["properties"].(object)
		if !ok {
			continue
		}
		properties["apiVersion"] = object{"enum": []any{strings.TrimPrefix(group+"/"+version, "/")}}
		properties["kind"] = object{"enum": []any{kind["kind"]}}
		definition["required"] = append(required(definition), "apiVersion", "kind")
		used := map[string]object{}
		collect(name, swagger.Definitions, used)
		schema := object{"$schema": draft, "$ref": "#/definitions/" + name, "definitions": used}
		if err := write(out, kind["kind"].(string), group, version, schema); err != nil {
			return err
		}
	}
	return nil
}

// operator decodes the resources of the Prometheus operator among the documents of a file, without unknown fields.
func operator(file string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	found := 0
	for _, document := range strings.Split(string(text), "\n---\n") {
		var kind metav1.TypeMeta
		if err := yaml.Unmarshal([]byte(document), &kind); err != nil {
			return err
		}
		if kind.APIVersion != monitoring.SchemeGroupVersion.String() {
			continue
		}
		var resource any
		switch kind.Kind {
		case monitoring.ServiceMonitorsKind:
			resource = &monitoring.ServiceMonitor{}
		case monitoring.PrometheusRuleKind:
			resource = &monitoring.PrometheusRule{}
		default:
			return fmt.Errorf("%s: %s is not known here", file, kind.Kind)
		}
		if err := yaml.UnmarshalStrict([]byte(document), resource); err != nil {
			return fmt.Errorf("%s: %s: %w", file, kind.Kind, err)
		}
		found++
	}
	fmt.Printf("%s: %d resources of the Prometheus operator\n", filepath.Base(file), found)
	return nil
}

const draft = "http://json-schema.org/draft-07/schema#"

func required(schema object) []any {
	names, _ := schema["required"].([]any)
	return names
}

// strict refuses properties that an object does not have, and allows numbers where Kubernetes takes a number or a text.
func strict(node any) {
	switch node := node.(type) {
	case []any:
		for _, item := range node {
			strict(item)
		}
	case object:
		for name, item := range node {
			if name != "enum" && name != "default" && name != "x-kubernetes-group-version-kind" {
				strict(item)
			}
		}
		if node["format"] == "int-or-string" {
			node["type"] = []any{"integer", "string"}
			delete(node, "format")
		}
		_, isObject := node["properties"].(object)
		_, isOpen := node["additionalProperties"]
		if kind, isText := node["type"].(string); isText && kind == "object" && isObject && !isOpen {
			node["additionalProperties"] = false
		}
	}
}

// collect adds a definition, and those that it refers to.
func collect(name string, definitions, used map[string]object) {
	if _, done := used[name]; done {
		return
	}
	definition, exists := definitions[name]
	if !exists {
		panic("no definition " + name)
	}
	used[name] = definition
	var walk func(node any)
	walk = func(node any) {
		switch node := node.(type) {
		case []any:
			for _, item := range node {
				walk(item)
			}
		case object:
			if reference, ok := node["$ref"].(string); ok {
				collect(strings.TrimPrefix(reference, "#/definitions/"), definitions, used)
			}
			for _, item := range node {
				walk(item)
			}
		}
	}
	walk(definition)
}

func write(out, kind, group, version string, schema object) error {
	name := strings.ToLower(kind)
	if group != "" {
		name += "-" + strings.Split(group, ".")[0]
	}
	text, err := json.Marshal(schema)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(out, name+"-"+version+".json"), text, 0o644)
}
