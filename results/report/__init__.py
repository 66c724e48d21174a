"""The page that one looks at: claims, pictures, tables and plots of one or more runs in a single HTML file."""
